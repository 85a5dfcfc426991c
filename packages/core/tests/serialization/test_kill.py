# SPDX-License-Identifier: Apache-2.0
"""A save killed at any moment leaves the old model or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quanto

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, so that torch is imported once")

# Forks a child for every call of a save that reaches the disk; each saves model 2 over a copy of the folder with
# model 1 and kills itself at its call. What a write had put down half by then stays down. Prints how each child ended.
EVERY_CALL = """
import json, os, pathlib, shutil, signal, sys
import torch, quanto

old, where = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
torch.manual_seed(2)
model = quanto.freeze(quanto.quantize(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 64)), "int4"))
CALLS = [(os, n) for n in ("open", "write", "fsync", "replace", "close")] + [(pathlib.Path, "unlink")]


def die_at(countdown):
    def dying(name, function):
        def call(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                if name == "write":
                    function(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in CALLS:
        setattr(owner, name, dying(name, getattr(owner, name)))


ends = []
while not ends or ends[-1] == -signal.SIGKILL:
    folder = where / str(len(ends) + 1)
    shutil.copytree(old, folder)
    child = os.fork()
    if child == 0:
        die_at(len(ends) + 1)
        quanto.save(model, folder, shard_size="2KB")
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""

# Forks a child that saves models 1 and 2 over each other without end, kills it after a moment, loads, and goes on.
ANY_MOMENT = """
import os, pathlib, signal, sys, time
import torch, quanto

folder = pathlib.Path(sys.argv[1])


def make(seed):
    torch.manual_seed(seed)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 64))
    return layers if seed == 0 else quanto.freeze(quanto.quantize(layers, "int4"))


models = [make(1), make(2)]
codes = [m.state_dict()["1.weight_packed"] for m in models]
for round in range(25):
    child = os.fork()
    if child == 0:
        while True:
            for model in models:
                quanto.save(model, folder, shard_size="2KB")
    time.sleep(0.0013 * (1 + round * 7 % 25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = quanto.load(folder, make(0)).state_dict()["1.weight_packed"]
    assert any(torch.equal(found, c) for c in codes)
"""


def _run(script: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _float() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return quanto.freeze(quanto.quantize(_float(), "int4"))


def test_killed_at_every_call(tmp_path: Path, bits: Callable[[nn.Module], dict[str, Any]]) -> None:
    old, where = tmp_path / "old", tmp_path / "killed"
    quanto.save(_model(1), old, shard_size="2KB")
    (old / "config.json").write_text("{}")
    assert len(list(old.glob("*.safetensors"))) == 2
    where.mkdir()
    ends = json.loads(_run(EVERY_CALL, old, where))
    assert ends[-1] == 0
    assert len(ends) > 25, "every call that reaches the disk must be counted"
    states = {"old": bits(_model(1)), "new": bits(_model(2))}
    seen = []
    for step in range(1, len(ends) + 1):
        folder = where / str(step)
        found = bits(quanto.load(folder, _float()))
        seen.append(next(which for which, state in states.items() if state == found))
        assert (folder / "config.json").read_text() == "{}"
        quanto.save(_model(1), folder)
        left = {p.name for p in folder.iterdir()}
        assert len(left) == 3, f"the next save cleans up, here are {left}"
        shutil.rmtree(folder)
    commit = seen.index("new")
    assert 0 < commit < len(seen) - 1
    assert seen == ["old"] * commit + ["new"] * (len(seen) - commit), "one call is the commit"


def test_killed_at_any_moment(tmp_path: Path) -> None:
    quanto.save(_model(1), tmp_path, shard_size="2KB")
    _run(ANY_MOMENT, tmp_path)


def test_a_first_save_that_was_killed_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "quanto-00001-of-00001.safetensors").write_bytes(b"half")
    (tmp_path / "quanto.json.partial").write_text("{")
    with pytest.raises(quanto.serialization.FormatError, match=r"holds no quanto\.json"):
        quanto.load(tmp_path, _float())
