# SPDX-License-Identifier: Apache-2.0
"""What one of two processes does in the tests of distributed models: `python ranks.py SCENARIO ARGUMENTS`.

Results go to files in the folder that the arguments name; the test compares them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import auto_class, inputs, run
from transformers.distributed import DistributedConfig

from quanto.nn import QModule
from quanto_transformers import QuantoConfig


def load(given: dict[str, Any], source: str) -> Any:
    config = {"quantization_config": QuantoConfig(**given["config"])} if source == "float" else {}
    distributed = DistributedConfig(**given["distributed"])
    return auto_class(given["name"]).from_pretrained(given[source], distributed_config=distributed, **config)


def bytes_held(model: torch.nn.Module) -> int:
    """Bytes of this rank's shares of quantized weights."""
    parts = [p for m in model.modules() if isinstance(m, QModule) for n, p in m.named_parameters(recurse=False)]
    return sum(getattr(p, "_local_tensor", p).nbytes for p in parts)


def infer(given: dict[str, Any]) -> None:
    """Quantizes while loading and loads what was saved, with the model spread over both; saves it from both."""
    for source in ("float", "quantized"):
        model = load(given, source)
        logits = run(model, given["name"])
        if given["saves"]:
            model.save_pretrained(Path(given["out"], f"saved-{source}"))
        if dist.get_rank() == 0:
            torch.save(logits.cpu(), Path(given["out"], f"logits-{source}.pt"))
            Path(given["out"], f"bytes-{source}.json").write_text(json.dumps(bytes_held(model)))


def train(given: dict[str, Any]) -> None:
    """A few steps of an adapter on codes that are spread over both."""
    import peft

    model = load(given, "quantized")
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, foreach=False)  # plain tensors and DTensors together
    batch, losses = {k: v.to(model.device) for k, v in inputs(given["name"]).items()}, []
    for _ in range(5):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        for parameter in trainable:  # the same batch on both: the mean is the gradient of one
            if parameter.grad is not None and not hasattr(parameter.grad, "_local_tensor"):
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if dist.get_rank() == 0:
        Path(given["out"], "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        {"infer": infer, "train": train}[sys.argv[1]](json.loads(os.environ["GIVEN"]))
        dist.barrier()
    finally:
        dist.destroy_process_group()
