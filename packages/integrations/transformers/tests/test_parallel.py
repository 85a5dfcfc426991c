# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism and FSDP2 in two processes: the logits of one process, and files that one process reads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import auto_class, inputs, run

from quanto.nn import QModule
from quanto_transformers import QuantoConfig

Saved = Callable[..., Path]

RANKS = Path(__file__).parent / "support" / "ranks.py"


def two_processes(scenario: str, given: dict[str, Any], gpus: bool = False) -> None:
    """Runs a scenario of `ranks.py` on the CPU through gloo, or on two GPUs through NCCL."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), scenario],
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank), "GIVEN": json.dumps(given, default=str)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(o[-4000:] for o in outputs)


CASES: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("llama", {"weights": "int8"}, {"tp_size": 2}),
    ("llama", {"weights": "int4", "group_size": 16}, {"tp_size": 2}),
    ("llama", {"weights": "float8", "activations": "float8"}, {"tp_size": 2}),
    ("mixtral", {"weights": "int4", "group_size": 16}, {"tp_size": 2}),
    ("llama4", {"weights": "int8"}, {"tp_size": 2}),
    ("llama", {"weights": "int4"}, {"fsdp_size": 2}),
    ("mixtral", {"weights": "int8"}, {"fsdp_size": 2}),
]


@pytest.mark.parametrize(("name", "config", "distributed"), CASES, ids=str)
def test_two_are_as_one(name: str, config: dict, distributed: dict, saved: Saved, tmp_path: Path) -> None:
    check_inference(name, config, distributed, saved, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("name", "config", "distributed"), CASES, ids=str)
def test_two_gpus_are_as_one(name: str, config: dict, distributed: dict, saved: Saved, tmp_path: Path) -> None:
    check_inference(name, config, distributed, saved, tmp_path, gpus=True)


def check_inference(
    name: str, config: dict, distributed: dict, saved: Saved, tmp_path: Path, gpus: bool = False
) -> None:
    one = auto_class(name).from_pretrained(saved(name), quantization_config=QuantoConfig(**config))
    one.save_pretrained(tmp_path / "one")
    expected = run(one, name)
    plain = run(auto_class(name).from_pretrained(saved(name)), name)
    given = {"name": name, "config": config, "distributed": distributed, "float": saved(name)}
    two_processes("infer", {**given, "quantized": tmp_path / "one", "out": tmp_path}, gpus)
    whole = sum(p.nbytes for m in one.modules() if isinstance(m, QModule) for p in m.parameters(recurse=False))
    for source in ("float", "quantized"):
        found = torch.load(tmp_path / f"logits-{source}.pt")
        if "activations" not in config:
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        else:  # a rank that has half of the inputs of a layer gives them scales of their own: other, not more error
            assert 0 < (found - plain).norm() <= 1.1 * (expected - plain).norm() < 0.2 * plain.norm()
        assert json.loads((tmp_path / f"bytes-{source}.json").read_text()) < 0.65 * whole
        again = auto_class(name).from_pretrained(tmp_path / f"saved-{source}")
        assert torch.equal(run(again, name), expected)


@pytest.mark.parametrize("distributed", [{"tp_size": 2}, {"fsdp_size": 2}], ids=str)
def test_adapters_train_as_in_one_process(distributed: dict, saved: Saved, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = {"weights": "int4", "group_size": 16}
    model = auto_class("llama").from_pretrained(saved("llama"), quantization_config=QuantoConfig(**config))
    model.save_pretrained(tmp_path / "one")
    given = {"name": "llama", "config": config, "distributed": distributed, "float": saved("llama")}
    two_processes("train", {**given, "quantized": tmp_path / "one", "out": tmp_path})
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    expected, batch = [], inputs("llama")
    for _ in range(5):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    found = json.loads((tmp_path / "losses.json").read_text())
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=2e-3)


def test_a_cut_through_a_group_is_refused(saved: Saved, tmp_path: Path) -> None:
    """down_proj has 96 inputs: 48 for each rank, which groups of 32 do not divide."""
    given = {"name": "llama", "config": {"weights": "int4", "group_size": 32}, "distributed": {"tp_size": 2}}
    with pytest.raises(AssertionError, match="tensor parallelism would cut through groups"):
        two_processes("infer", {**given, "float": saved("llama"), "quantized": saved("llama"), "out": tmp_path})
