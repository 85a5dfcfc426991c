# SPDX-License-Identifier: Apache-2.0
"""Measures what quanto-transformers promises: `nox -s bench -- transformers [loading] [generation] [caches]`.

Memory and time of loading, tokens that stay the same when a model is quantized, perplexity with a quantized cache of
keys and values. Prints tables and writes them to `bench/results/transformers-<machine>.json`, where tables that were
not asked for stay as they are. The language model is the demo's; memory is measured on a Llama of 0.6 billion random
weights in shards of 200 MB, so that a shard is a small part.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, QuantizedCache

import quanto
import quanto_transformers
from quanto_transformers import QuantoConfig

from .core import RESULTS, machine

sys.path.append(str(Path(__file__).parents[1] / "examples"))
SHARD = "200MB"
REPEATS = 2  # of what is timed; the fastest counts
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 50, 16, 60
SCHEMES: dict[str, dict[str, Any]] = {
    "bfloat16, not quantized": {},
    "int8": {"weights": "int8"},
    "int8 g32": {"weights": "int8", "group_size": 32},
    "float8": {"weights": "float8"},
    # of a model that was 4-bit before; groups of 32 would find its grid again
    "int4": {"weights": "int4"},
    "int4 hqq": {"weights": "int4", "algorithm": "hqq"},
}
CACHES: dict[str, dict[str, Any] | None] = {
    "float": None,
    "int8": {"nbits": 8},
    "float8": {"nbits": "float8"},
    "int4": {"nbits": 4},
    "int2": {"nbits": 2, "q_group_size": 32},
}

_CHILD = """
import json, sys, threading, time, torch
from transformers import AutoModelForCausalLM
import quanto_transformers

def private():  # pages of mapped files are not counted: the system may drop them at any time
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def watch():
    while not done.wait(0.002):
        peaks.append(private())

folder, config = sys.argv[1], json.loads(sys.argv[2])
made = None if config is None else quanto_transformers.QuantoConfig(**config)
import transformers.models.llama.modeling_llama  # the lazy module would import it while the time runs
done, peaks = threading.Event(), []
watcher = threading.Thread(target=watch)
before = private()
watcher.start()
start = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=made)
seconds = time.perf_counter() - start
done.set()
watcher.join()
held = {p.data_ptr(): p.nbytes for p in model.parameters()}
print(json.dumps({"peak": max(peaks) - before, "seconds": seconds, "model": sum(held.values())}))
"""


def child(folder: Path, config: dict[str, Any] | None, mapped: bool = False) -> dict[str, float]:
    """Loads in a fresh process.

    Args:
        folder: of the model.
        config: of `QuantoConfig`, or None.
        mapped: whether codes stay as the file has them, instead of being arranged for the fastest kernel.

    Returns:
        The peak of private bytes beyond those held before, bytes of the model, and seconds.
    """
    command = [sys.executable, "-c", _CHILD, str(folder), json.dumps(config)]
    chosen = {"QUANTO_KERNELS": "cpu.canonical.linear,reference.linear"} if mapped else {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **chosen})
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def big_model(folder: Path) -> Path:
    """Writes a Llama of 0.6 billion random weights in bfloat16."""
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=11, vocab_size=8192)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def loading(console: Console) -> list[dict[str, Any]]:
    """Peak memory and time, on the fly and from saved files."""
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = big_model(Path(root, "float"))
        shard = max(path.stat().st_size for path in folder.glob("*.safetensors"))
        rows.append({"what": "float", **min((child(folder, None) for _ in range(REPEATS)), key=_seconds)})
        for name, config in {"int8": {"weights": "int8"}, "int4": {"weights": "int4"}}.items():
            rows.append({"what": f"{name}, on the fly", **child(folder, config)})
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, quantization_config=QuantoConfig(**config)
            )
            saved = Path(root, name)
            model.save_pretrained(saved, max_shard_size=SHARD)
            del model
            alone = min(_read(saved) for _ in range(REPEATS))
            for what, mapped in (("saved", False), ("saved, as in the file", True)):
                fastest = min((child(saved, None, mapped) for _ in range(REPEATS)), key=_seconds)
                rows.append({"what": f"{name}, {what}", **fastest, "safetensors alone, s": alone})
    table = Table(title=f"Loading 0.6 billion weights, shards of {SHARD} (largest {shard / 1e6:.0f} MB)")
    for column in ("", "model MB", "peak MB", "peak − model MB", "seconds", "files alone"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        row["peak beyond model"], row["largest shard"] = row["peak"] - row["model"], shard
        sizes = (f"{row[key] / 1e6:.0f}" for key in ("model", "peak", "peak beyond model"))
        alone = row.get("safetensors alone, s")
        table.add_row(row["what"], *sizes, f"{row['seconds']:.2f}", "" if alone is None else f"{alone:.2f}")
    console.print(table)
    return rows


def _read(folder: Path) -> float:
    """Seconds to load the files alone into memory of one's own."""
    start = time.perf_counter()
    held = [tensor.clone() for path in sorted(folder.glob("*.safetensors")) for tensor in load_file(path).values()]
    assert held
    return time.perf_counter() - start


def _seconds(row: dict[str, float]) -> float:
    return row["seconds"]


def texts(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The beginnings of 50 paragraphs, int64 [50, 16], and 4096 tokens in a row."""
    from demo.text import prose

    paragraphs = [tokenizer(paragraph)["input_ids"] for paragraph in prose().split("\n\n")]
    starts = [ids[:PROMPT_TOKENS] for ids in paragraphs if len(ids) >= PROMPT_TOKENS][:PROMPTS]
    return torch.tensor(starts), torch.tensor(tokenizer(prose())["input_ids"][:4096])


def generation(console: Console, folder: Path, prompts: torch.Tensor) -> list[dict[str, Any]]:
    """Greedy texts of quantized models beside those of the float model; and of bfloat16, to judge the others by."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = _continue(model, prompts)
    rows = []
    for name, config in SCHEMES.items():
        if config.get("algorithm", "minmax") not in quanto.quantizers.quantizers:
            continue
        given = {"quantization_config": QuantoConfig(**config)} if config else {}
        dtype = torch.float32 if config else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **given)
        found = _continue(model, prompts)
        same = found == expected
        with torch.no_grad():  # the next token of each place in the float model's text
            likeliest = model(torch.cat([prompts, expected], 1)).logits[:, PROMPT_TOKENS - 1 : -1].argmax(-1)
        rows.append(
            {
                "scheme": name,
                "same tokens": same.double().mean().item(),
                "same texts": same.all(1).double().mean().item(),
                "same next token": (likeliest == expected).double().mean().item(),
            }
        )
    table = Table(title=f"{PROMPTS} greedy texts of {NEW_TOKENS} tokens beside those of the float model")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for row in rows:
        table.add_row(row["scheme"], *(f"{v:.1%}" for k, v in row.items() if k != "scheme"))
    console.print(table)
    return rows


@torch.no_grad()
def _continue(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    mask = torch.ones_like(prompts)
    out: torch.Tensor = model.generate(prompts, attention_mask=mask, **options)[:, prompts.shape[1] :]
    return out


@torch.no_grad()
def caches(console: Console, folder: Path, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Perplexity where what was read long ago comes from a quantized cache: 4 texts of 1024 tokens, 32 at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch, step, rows = tokens.view(4, 1024), 32, []
    for name, options in CACHES.items():
        cache = None if options is None else QuantizedCache("quanto", model.config, residual_length=64, **options)
        total, count = 0.0, 0
        for start in range(0, 1024, step):
            part = batch[:, start : start + step]
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            target = batch[:, start + 1 : start + step + 1]
            logits = out.logits[:, : target.shape[1]].flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, target.flatten(), reduction="sum").item()
            count += target.numel()
        rows.append({"cache": name, "perplexity": math.exp(total / count)})
    table = Table(
        "cache", "perplexity", "change", title="Perplexity by the cache of keys and values, 64 newest in float"
    )
    for row in rows:
        table.add_row(row["cache"], f"{row['perplexity']:.3f}", f"{row['perplexity'] / rows[0]['perplexity'] - 1:+.2%}")
    console.print(table)
    return rows


def main() -> None:
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.utils.logging.disable_progress_bar()
    from demo.model import NAME, fetch

    console = Console()
    folder = fetch()
    prompts, tokens = texts(AutoTokenizer.from_pretrained(folder))
    tables: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "loading": lambda: loading(console),
        "generation": lambda: generation(console, folder, prompts),
        "caches": lambda: caches(console, folder, tokens),
    }
    asked = sys.argv[1:] or list(tables)
    if unknown := [name for name in asked if name not in tables]:
        raise SystemExit(f"no table {unknown[0]!r}; there are: {', '.join(tables)}")
    name = f"{machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    path = RESULTS / f"transformers-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    found = {table: tables[table]() for table in asked}
    known = json.loads(path.read_text()) if path.is_file() else {}
    figures = {table: found.get(table, known.get(table, [])) for table in tables}
    head = {"machine": name, "versions": versions(), "model": NAME}
    path.write_text(json.dumps({**head, **figures}, indent=1) + "\n")
    print(f"written to {path}")


def versions() -> dict[str, str]:
    """Of all that decides the figures; without a backend, core's own kernels run."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "quanto-core": quanto.__version__}
    found["quanto-transformers"] = quanto_transformers.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["quanto-backend-cpu"] = importlib.metadata.version("quanto-backend-cpu")
    return found


if __name__ == "__main__":
    main()
