# SPDX-License-Identifier: Apache-2.0
"""What one epoch of training gives back to a language model that rounding has degraded.

`python -m bench.recovery MODEL --text train.txt more.txt --held-out held-out.txt` prints a table and writes
`bench/results/recovery-<model>.json`. MODEL is a folder of a causal language model of transformers; its embeddings and
head stay floating. Each row is rounded, and then trained for one epoch of the texts towards the float model's
predictions (the divergence of its next-token distributions): with gradients that pass straight through the rounding,
or with scales and zero points that are learned too (LSQ). What is measured is the frozen model, on text that no
training saw.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import quanto
from quanto.eval import perplexity

RESULTS = Path(__file__).parent / "results"
#: label to the fields of a scheme
SCHEMES: dict[str, dict[str, Any]] = {
    "int4 g128": {"weights": "int4", "group_size": 128},
    "int2 g64": {"weights": "int2", "group_size": 64},
}
#: label to how it is trained: more fields of the scheme, None for no training
WAYS: dict[str, dict[str, Any] | None] = {
    "rounded": None,
    "trained, straight through": {},
    "trained, learned scales": {"learned": True, "algorithm": "mse"},
}


def train(model: Any, teacher: Any, blocks: Tensor, options: argparse.Namespace) -> None:
    """One epoch of AdamW under a cosine; scales and zero points have rates of their own size."""
    weights, scales, zeros = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = scales if name.endswith("_scale") else zeros if name.endswith("_zero_point") else weights
            kind.append(parameter)
    groups = [
        {"params": weights, "lr": options.rate},
        {"params": zeros, "lr": options.rate * 10},  # in steps of the grid
    ]
    groups += [{"params": [p], "lr": options.rate * 10 * float(p.detach().abs().mean())} for p in scales]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0)).split(options.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / len(order)))
    )
    start = time.perf_counter()
    for step, index in enumerate(order):
        with torch.no_grad():
            wanted = teacher(blocks[index]).logits.log_softmax(-1)
        found = model(blocks[index]).logits.log_softmax(-1)
        loss = F.kl_div(found.flatten(0, 1), wanted.flatten(0, 1), log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(
                f"  step {step} of {len(order)}, {loss.item():.4f} nats, {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| weights | bits per weight | | perplexity | times float | loss (nats) |", "|---|---|---|---|---|---|"]
    lines.append(f"| float | | | {result['float']:.2f} | | |")
    for row in result["rows"]:
        loss = math.log(row["perplexity"] / result["float"])
        figures = f"{row['perplexity']:.2f} | {math.exp(loss):.3f} | {loss:.4f}"
        lines.append(f"| {row['weights']} | {row['bits']:.2f} | {row['way']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments, rounds, trains, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="to train on, as much of each")
    parser.add_argument("--held-out", type=Path, required=True, help="to measure on")
    parser.add_argument("--tokens", type=int, default=262_144, help="of the epoch")
    parser.add_argument("--held-out-tokens", type=int, default=32_768)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="blocks of a step")
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--only", nargs="*", default=list(SCHEMES), choices=list(SCHEMES))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().to(options.device)

    def read(path: Path, count: int) -> Tensor:
        text = path.read_text(encoding="utf-8")[: 12 * count]
        ids: Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0][:count]
        return ids[: len(ids) // options.block * options.block].view(-1, options.block).to(options.device)

    blocks = torch.cat([read(path, options.tokens // len(options.text)) for path in options.text])
    held_out = read(options.held_out, options.held_out_tokens).flatten()
    teacher = load()

    def measure(model: Any) -> float:
        return perplexity(model, held_out, block=options.block, progress=False).value

    result: dict[str, Any] = {
        "model": options.model.name,
        "text": [path.name for path in options.text],
        "tokens": blocks.numel(),
        "held_out": options.held_out.name,
        "held_out_tokens": held_out.numel(),
        "block": options.block,
        "batch": options.batch,
        "rate": options.rate,
        "torch": torch.__version__,
        "quanto": quanto.__version__,
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
        "float": measure(teacher),
        "rows": [],
    }
    for label in options.only:
        for way, more in WAYS.items():
            start = time.perf_counter()
            model = quanto.quantize(load(), exclude="lm_head", progress=False, **SCHEMES[label], **(more or {}))
            if more is not None:
                train(model, teacher, blocks, options)
            quanto.freeze(model, progress=False)
            bits = _bits(model)
            row = {"weights": label, "way": way, "bits": round(bits, 3), "perplexity": measure(model)}
            result["rows"].append({**row, "seconds": round(time.perf_counter() - start, 1)})
            print(result["rows"][-1], flush=True)
    path = RESULTS / f"recovery-{options.model.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


def _bits(model: Any) -> float:
    """Bits per quantized weight, with scales and zero points."""
    found = [m.qtensor() for m in model.modules() if isinstance(m, quanto.nn.QModule) and m._slots]
    return 8 * sum(q.nbytes for q in found) / sum(q.numel() for q in found)


if __name__ == "__main__":
    main()
