# SPDX-License-Identifier: Apache-2.0
"""Times whole models: decoding one sequence, and quantizing, with random weights of the shape of Llama-3.1-8B.

`python -m bench.models` (or `nox -s bench -- models`). Every variant has a process of its own. They are quantized one
after another, compile all at once, and are timed one after another when the last is ready. A token must read every
weight of the layers and of the head once: that and the read ceiling make the bandwidth limit. `bench/decoding.py` says
what is timed. Layers that read the same input are joined, as `quanto.join` does.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .decoding import decode

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
#: name: qtype; "head" quantizes the head as well, and "apart" leaves layers that read the same input apart.
VARIANTS = ("bf16", "int8", "int4", "int4 apart", "int4 head", "torchao int4")
SIZES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(size: str) -> Any:
    """A Llama with random weights, bfloat16, on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZES[size], max_position_embeddings=2048, tie_word_embeddings=False)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def memory(what: str) -> int:
    """Bytes: `allocated` or `max_allocated`; 0 without a GPU."""
    return int(getattr(torch.cuda, f"{what.replace('allocated', 'memory_allocated')}")()) if DEVICE == "cuda" else 0


def quantize(model: Any, variant: str) -> dict[str, float]:
    """Quantizes the layers; seconds, and bytes at the most beside those of the float model."""
    largest = max(p.numel() * p.element_size() for n, p in model.named_parameters() if "layers." in n)
    before = memory("allocated")
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    start = time.perf_counter()
    if variant == "torchao int4":
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        quantize_(model.model, Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d", version=2))
    elif variant != "bf16":
        import quanto

        qtype, _, how = variant.partition(" ")
        kept = () if how == "head" else "lm_head"
        quanto.freeze(quanto.quantize(model, qtype, exclude=kept, symmetric=True), progress=False)
    synchronize()
    seconds = time.perf_counter() - start
    peak = memory("max_allocated")
    if variant.startswith("int") and not variant.endswith("apart"):
        quanto.join(model)
    return {
        "quantize_s": seconds,
        "bf16_bytes": before,
        "largest_layer_bytes": largest,
        "peak_bytes": peak,
        "quantized_bytes": memory("allocated"),
    }


def nbytes(model: Any) -> int:
    """What one token reads: every weight but those of the embedding."""
    skip = {id(p) for p in model.get_input_embeddings().parameters()}
    return sum(_stored(t) for t in [*model.parameters(), *model.buffers()] if id(t) not in skip)


def _stored(t: Any) -> int:
    names = t.__tensor_flatten__()[0] if type(t) is not torch.nn.Parameter and hasattr(t, "__tensor_flatten__") else []
    return sum(_stored(getattr(t, n)) for n in names) if names else t.numel() * t.element_size()


def worker(variant: str, size: str) -> None:
    """One variant: prints `ready`, waits for a line, times, prints the figures as JSON."""

    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    with Path(__file__).open() as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        model = build(size)
        found: dict[str, Any] = {"variant": variant, **quantize(model, variant)}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()  # what quantizing took is for the others
    found["bytes_per_token"] = nbytes(model)
    print(found, file=sys.stderr, flush=True)
    found.update(decode(model, 128 if size != "tiny" else 16, ready))
    found["tokens_per_s"] = 1e3 / found["ahead_ms"]
    print(json.dumps(found), flush=True)


def read_gbs() -> float:
    """GB/s of reading on the GPU; on a CPU 10, so that the dry run has a number."""
    if DEVICE == "cpu":
        return 10.0
    from .cuda.measure import ceilings

    found = ceilings()["read_gbs"]
    torch.cuda.empty_cache()
    return found


def run(variants: list[str], size: str, seconds: float) -> list[dict[str, Any]]:
    """All variants; those that fail or are late say so in `note`."""
    end = time.monotonic() + seconds
    command = [sys.executable, "-m", "bench.models", "--size", size, "--worker"]
    processes = {}
    for variant in variants:
        errors = Path(tempfile.gettempdir()) / f"models-{variant.replace(' ', '-')}-{os.getpid()}.log"
        with errors.open("w") as log:
            processes[variant] = (
                errors,
                subprocess.Popen(
                    [*command, variant], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
                ),
            )
    lines = {v: _Lines(p) for v, (_, p) in processes.items()}
    for v in variants:
        lines[v].wait_for("ready", end)
    found = []
    for v, (errors, process) in processes.items():
        row: dict[str, Any] = {"variant": v}
        answer = lines[v].answer(end)
        if answer is not None:
            row.update(json.loads(answer))
            errors.unlink()
        else:
            process.kill()
            said = [line for line in errors.read_text().splitlines() if "Error" in line]
            row["note"] = f"{said[-1][:160] if said else 'not ready in time'} ({errors})"
        found.append(row)
    return found


class _Lines:
    """What a worker prints, read by a thread so that waiting has an end."""

    def __init__(self, process: Any) -> None:
        import queue
        import threading

        self.process = process
        self.queue: Any = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.queue.put(line.strip())
        self.queue.put(None)

    def _next(self, end: float) -> str | None:
        import queue

        try:
            line: str | None = self.queue.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return None
        return line

    def wait_for(self, word: str, end: float) -> None:
        line: str | None = ""
        while line is not None and line != word:
            line = self._next(end)

    def answer(self, end: float) -> str | None:
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except OSError:
            return None
        line: str | None = ""
        while line is not None and not line.startswith("{"):
            line = self._next(end)
        return line


def show(found: dict[str, Any]) -> None:
    """Prints the tables."""
    print(f"{found['machine']}, {found['size']}, read {found['read_gbs']:.0f} GB/s; ms per token, share of the limit")
    names = ("limit", "generate", "ahead", "loop", "kernels")
    print(
        f"{'variant':14}" + "".join(f"{n:>16}" for n in names) + f"{'tokens/s':>10}{'quantize, s':>13}{'peak, MB':>18}"
    )
    for row in found["rows"]:
        if "note" in row:
            print(f"{row['variant']:14} {row['note']}")
            continue
        limit = 1e3 / row["limit"]
        kernels = sum(ms for name, ms in row.get("kernels_ms", {}).items() if name != "number")
        times = (row["generate_ms"], row["ahead_ms"], row.get("loop_ms"), kernels or None)
        cells = "".join(f"{'–':>16}" if ms is None else f"{ms:9.2f} ({limit / ms:4.0%})" for ms in times)
        over = (row["peak_bytes"] - row["bf16_bytes"]) / 1e6
        print(f"{row['variant']:14}{limit:16.2f}{cells}{row['tokens_per_s']:10.1f}{row['quantize_s']:13.2f}"
              f"{over:8.0f} (of {row['largest_layer_bytes'] / 1e6:.0f})")  # fmt: skip
    for row in found["rows"]:
        if "kernels_ms" in row:
            parts = ", ".join(f"{name} {value:.2f}" for name, value in row["kernels_ms"].items())
            print(f"{row['variant']:14} kernels, ms: {parts}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="default: all")
    parser.add_argument("--size", choices=SIZES, default="8b" if DEVICE == "cuda" else "tiny")
    parser.add_argument("--seconds", type=float, default=900, help="the bound of all together")
    parser.add_argument("--out", type=Path, metavar="JSON", help="default: bench/results/models-<gpu>.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.size)
        return
    start = time.monotonic()
    gbs = read_gbs()
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    rows = run(options.variant or list(VARIANTS), options.size, options.seconds - (time.monotonic() - start))
    for row in rows:
        if "note" not in row:
            row["limit"] = gbs * 1e9 / row["bytes_per_token"]
            row["share"] = row["tokens_per_s"] / row["limit"]
    found = {"machine": machine, "size": options.size, "torch": torch.__version__, "read_gbs": gbs, "rows": rows}
    show(found)
    slug = "-".join("".join(c if c.isalnum() else " " for c in machine.lower()).split())
    path = options.out or (RESULTS / f"models-{slug}.json" if DEVICE == "cuda" else None)
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
