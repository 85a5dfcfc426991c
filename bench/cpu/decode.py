# SPDX-License-Identifier: Apache-2.0
"""Decodes with a language model: `python -m bench.cpu.decode`; tokens a second, and the bytes a token reads.

One sequence, greedy, with a key-value cache; every scheme in turns, the best turn of each. Besides eager calls, the
forward pass is timed compiled, which leaves out most of the time that Python takes between layers.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quanto

from ..core import RESULTS, machine
from . import profiles

ROOT = Path(__file__).parents[2]
_SHOWN = "QUANTO_BENCH_SHOWN"
SCHEMES: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "bfloat16": None,
    "int8": {"weights": "int8"},
    "int4 g128": {"weights": "int4", "group_size": 128},
    "int8, bfloat16": {"weights": "int8"},
    "int4 g128, bfloat16": {"weights": "int4", "group_size": 128},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.decode", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--model", type=Path, help="folder in the format of transformers; the demo's otherwise")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES), help="float32 among them")
    parser.add_argument("--profile", default="native", choices=sorted(profiles.PROFILES), help="see profiles.py")
    parser.add_argument("--join", action="store_true", help="layers that read the same input run as one")
    parser.add_argument("--head", action="store_true", help="quantize the head and the embedding too")
    options = parser.parse_args()
    if options.profile != "native" and _SHOWN not in os.environ:  # the processor is shown before torch is imported
        shown = f"from bench.cpu import profiles; profiles.apply({options.profile!r})"
        call = [sys.executable, "-c", f"{shown}; from bench.cpu import decode; decode.main()", *sys.argv[1:]]
        sys.exit(subprocess.run(call, env={**os.environ, _SHOWN: "1"}, check=False).returncode)
    sys.path.insert(0, str(ROOT / "examples"))
    from demo.model import fetch, load

    torch.set_num_threads(options.threads)
    folder = options.model or fetch()
    models = {}
    for name, scheme in SCHEMES.items():
        if name not in options.schemes:
            continue
        model = load(folder, torch.bfloat16 if "bfloat16" in name else torch.float32)
        if options.head:  # the embedding is the head's weight: as two modules each can be quantized
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False
        if scheme is not None:
            exclude = [] if options.head else ["lm_head", "model.embed_tokens"]
            quanto.freeze(quanto.quantize(model, exclude=exclude, **scheme))
            if options.join:
                quanto.join(model)
        models[name] = model
    ways = {"eager": models}
    if options.compile:
        ways["compiled"] = {name: copy.copy(model) for name, model in models.items()}
        for model in ways["compiled"].values():
            model.forward = torch.compile(model.forward, dynamic=True)
    found: dict[str, Any] = {"machine": machine(), "model": folder.name, "profile": options.profile, "rows": []}
    found |= {"threads": options.threads, "torch": torch.__version__, "joined": options.join}
    for way, subjects in ways.items():
        best = dict.fromkeys(subjects, float("inf"))
        for _ in range(options.turns):
            for name, model in subjects.items():
                best[name] = min(best[name], seconds_per_token(model, options.tokens))
        plain = bytes_per_token(models["float32"])
        for name, model in models.items():
            read, rate = bytes_per_token(model), 1 / best[name]
            row = {"way": way, "scheme": name, "tokens_per_s": rate, "mb_per_token": read / 1e6}
            row |= {"gbs": read * rate / 1e9, "speedup": best["float32"] / best[name], "bytes_ratio": plain / read}
            row["of_ratio"] = row["speedup"] / row["bytes_ratio"]
            found["rows"].append(row)
            print(
                f"{way:9}{name:22}{rate:7.1f} tokens/s {row['mb_per_token']:7.1f} MB {row['gbs']:5.1f} GB/s, "
                f"{row['speedup']:.2f} times float32, {row['of_ratio']:.2f} of the ratio of bytes"
            )
    marks = [options.profile, f"{options.threads}-threads", *(["head"] if options.head else [])]
    path = RESULTS / f"cpu-decode-{folder.name}-{'-'.join(marks)}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def bytes_per_token(model: nn.Module) -> int:
    """What every token reads: the weights of all linear layers, scales included; of the embedding one row."""
    linear = [
        module for module in model.modules() if hasattr(module, "in_features") and hasattr(module, "out_features")
    ]
    return sum(t.nbytes for module in linear for t in (*module.parameters(), *module.buffers()))


@torch.no_grad()
def seconds_per_token(model: Any, tokens: int) -> float:
    """The fastest of some tokens after a prompt of eight; the median would hold what other programs take."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids: Tensor = torch.arange(100, 108).unsqueeze(0)
    best = float("inf")
    for step in range(tokens):
        start = time.perf_counter()
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        ids = logits[:, -1:].argmax(-1)
        if step > 2:
            best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
