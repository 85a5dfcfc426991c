# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.cuda.first_call QTYPE TOKENS`: seconds of the first calls of a process, without a cache of Triton.

The first call of all also imports Triton, lets it build the C module that it talks to the driver with, and runs the
self check of the kernel; the first call of another shape compiles one kernel.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

__all__ = ["measure"]

_CASES = (("int4", 1), ("int4", 64), ("int8", 256))


def measure() -> dict[str, list[float]]:
    """Each case in a process of its own: seconds of its first call, and of the first call of another shape after it."""
    found = {}
    for qtype, tokens in _CASES:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-m", "bench.cuda.first_call", qtype, str(tokens)]
            run = subprocess.run(
                command, env={**os.environ, "TRITON_CACHE_DIR": cache}, capture_output=True, text=True, timeout=120
            )
        lines = run.stdout.strip().splitlines()
        found[f"{qtype}, {tokens} tokens"] = json.loads(lines[-1]) if run.returncode == 0 and lines else []
    return found


def _one(qtype: str, tokens: int) -> list[float]:
    import torch

    import quanto

    times = []
    for features, count in ((4096, tokens), (4160, 2 * tokens)):
        layer = torch.nn.Linear(4096, features, device="cuda", dtype=torch.bfloat16)
        x = torch.randn(count, 4096, device="cuda", dtype=torch.bfloat16)
        layer(x)  # cuBLAS has its own first call
        quanto.freeze(quanto.quantize(layer, qtype))
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            layer(x)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1], int(sys.argv[2]))))
