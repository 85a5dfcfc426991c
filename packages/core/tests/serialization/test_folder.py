# SPDX-License-Identifier: Apache-2.0
"""A save killed at any moment leaves the old model or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import quanto
from quanto.serialization import folder as writing

# Saves model 2 over model 1 and dies at the n-th call that changes the disk; exits 3 if it never comes to that.
KILLED = """
import os, sys, pathlib
import safetensors.torch
import torch, quanto
target, countdown = sys.argv[1], int(sys.argv[2])

def dying(function):
    def call(*args, **kwargs):
        global countdown
        countdown -= 1
        if countdown == 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

os.replace, os.fsync = dying(os.replace), dying(os.fsync)
pathlib.Path.unlink = dying(pathlib.Path.unlink)
pathlib.Path.write_text = dying(pathlib.Path.write_text)
safetensors.torch.save_file = dying(safetensors.torch.save_file)
torch.manual_seed(2)
model = quanto.freeze(quanto.quantize(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 64)), "int4"))
quanto.save(model, target, shard_size="2KB")
sys.exit(3)
"""


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    return quanto.freeze(quanto.quantize(layers, "int4"))


def _float() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))


@pytest.mark.slow
def test_killed_at_every_step(tmp_path: Path) -> None:
    old, new = _model(1).state_dict(), _model(2).state_dict()
    seen = set()
    for step in range(1, 60):
        target = tmp_path / str(step)
        quanto.save(_model(1), target, shard_size="2KB")
        (target / "config.json").write_text("{}")
        done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], check=False)
        found = quanto.load(target, _float()).state_dict()
        which = "old" if torch.equal(found["0.weight_packed"], old["0.weight_packed"]) else "new"
        expected = old if which == "old" else new
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert (target / "config.json").read_text() == "{}"
        seen.add(which)
        quanto.save(_model(1), target)  # cleans up whatever the kill left
        assert len(list(target.glob("model*"))) == 1
        if done.returncode == 3:
            break
        assert done.returncode == 9
    else:
        pytest.fail("the save never finished")
    assert seen == {"old", "new"}


def test_only_own_files_are_removed(tmp_path: Path) -> None:
    mine = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors.bak", "adapter_model.safetensors"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "model-g7-00001-of-00001.safetensors").write_text("an older save")
    quanto.save(_model(1), tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert [p.name for p in tmp_path.glob("model-*.safetensors")] == ["model-g8-00001-of-00001.safetensors"]


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quanto.save(_model(1), tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    model = _model(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            quanto.save(model, tmp_path)
    found = quanto.load(tmp_path, _float())
    assert torch.equal(found.state_dict()["0.weight_packed"], _model(1).state_dict()["0.weight_packed"])


def test_names_never_repeat(tmp_path: Path) -> None:
    assert writing.new_names(tmp_path, 2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (tmp_path / "model-00001-of-00002.safetensors.partial").touch()
    assert writing.new_names(tmp_path, 1) == ["model-g2-00001-of-00001.safetensors"]
