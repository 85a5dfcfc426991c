# SPDX-License-Identifier: Apache-2.0
"""Times what quanto-core promises: call overhead, packing, quantizing, import.

`python -m bench.core` (or `nox -s bench -- core`) prints a table and writes `bench/results/core-<machine>.json`.
Figures are the best of several repeats; compare them within one run, machines are noisy.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn

import quanto
from quanto import packing

RESULTS = Path(__file__).parent / "results"
SIZE = 4096


def best(function: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def per_call(function: Callable[[], object], calls: int = 5000) -> float:
    """Microseconds per call."""

    def loop() -> None:
        for _ in range(calls):
            function()

    return best(loop, 5) / calls * 1e6


def overhead() -> dict[str, float]:
    """Microseconds that a quantized 64 x 64 Linear adds to its bare operator, which an empty function stands in for."""
    layer = quanto.freeze(quanto.quantize(nn.Linear(64, 64), "int8"))
    plain, x = nn.Linear(64, 64), torch.randn(1, 64)
    with torch.no_grad():
        layer(x)
        y, w = plain(x), layer.operand()

        def bare(*_: object) -> torch.Tensor:
            return y

        quanto.kernels.direct[w.key, x.device, x.dtype] = bare
        quantized = per_call(lambda: layer(x))
        call = per_call(lambda: bare(x, w.codes, w.scale, None, None, None, w.qtype, w.block_size))
        module = per_call(lambda: plain(x)) - per_call(lambda: nn.functional.linear(x, plain.weight, plain.bias))
        quanto.kernels.direct.clear()
    return {"quantized Linear over its operator, us": quantized - call, "nn.Linear over F.linear, us": module}


def packs() -> dict[str, float]:
    """Milliseconds to pack and unpack 4096 x 4096 codes."""
    found = {}
    for bits in (2, 3, 4):
        codes = torch.randint(0, 2**bits, (SIZE, SIZE), dtype=torch.uint8)
        packed = packing.pack(codes, bits)
        found[f"pack int{bits} 4096x4096, ms"] = best(lambda c=codes, b=bits: packing.pack(c, b)) * 1e3
        found[f"unpack int{bits} 4096x4096, ms"] = best(lambda p=packed, b=bits: packing.unpack(p, b, SIZE)) * 1e3
    return found


def quantizes() -> dict[str, float]:
    """Milliseconds to quantize a 4096 x 4096 bfloat16 weight, and to decode it."""
    weight = torch.randn(SIZE, SIZE).bfloat16()
    found = {}
    for qtype in ("int8", "int4", "int3", "int2", "float8", "nf4", "mxfp4", "nvfp4"):
        q = quanto.quantize_tensor(weight, qtype)
        found[f"quantize {qtype}, ms"] = best(lambda t=qtype: quanto.quantize_tensor(weight, t), 3) * 1e3
        found[f"dequantize {qtype}, ms"] = best(q.dequantize, 3) * 1e3
    for algorithm in ("mse", "hqq"):
        options = {"group_size": 128, "algorithm": algorithm}
        seconds = best(lambda o=options: quanto.quantize_tensor(weight, "int4", **o), 3)
        found[f"{algorithm} int4 over min/max"] = seconds * 1e3 / found["quantize int4, ms"]
    return found


def imports() -> dict[str, float]:
    """Seconds that `import quanto` adds to `import torch`: the median of differences in fresh processes."""
    code = "import time, torch; s = time.perf_counter(); import quanto; print(time.perf_counter() - s)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    return {"import quanto after torch, s": median(float(run.stdout) for run in runs)}


def machine() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def main() -> None:
    name = f"{machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, quanto-core {quanto.__version__}")
    figures = {**overhead(), **packs(), **quantizes(), **imports()}
    for label, value in figures.items():
        print(f"{label:46} {value:9.2f}")
    versions = {"torch": torch.__version__, "quanto-core": quanto.__version__, "python": platform.python_version()}
    path = RESULTS / f"core-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": name, "versions": versions, "figures": figures}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
