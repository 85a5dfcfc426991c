# SPDX-License-Identifier: Apache-2.0
"""Decodes with a language model: `python -m bench.cpu.decode`; tokens a second, and the bytes a token reads.

One sequence, greedy, with a key-value cache; the best token of each, and medians besides. Besides eager calls, a whole
token is timed as one compiled graph, with the checks that torch.compile makes before each call and without; the float
model too, so that ratios hold. Every scheme has a process to itself and float32, in turns: six compiled models in one
process scatter what the checks read over so much memory that an int4 token takes 8.8 ms instead of 6.8. llama.cpp
decodes the same model in the last of them, where it is installed.

Results go to a file of `bench/results` whose name holds whatever changes them; there, those of the schemes that were
measured replace their earlier ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core import RESULTS, machine
from . import profiles
from .candidate import Missing
from .decoder import Compiled, Eager, Unguarded
from .merge import merged_runs
from .peers import llama
from .subjects import SCHEMES, bytes_per_token, source, subject

_PART = "QUANTO_BENCH_PART"  # the file that a process of one scheme writes its rows to
_TOKENS = 24
_PEER = "llama.cpp"


@dataclass
class Run:
    """A way to decode under a scheme, and the seconds of its tokens."""

    way: str
    scheme: str
    decode: Callable[[int], list[float]]
    nbytes: int
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.decode", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=_TOKENS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--cpp-wrapper", action="store_true", help="compiled code calls operators from C++")
    parser.add_argument("--model", help="folder in the format of transformers, or llama-1b: random, of that shape")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES), help="float32 among them")
    parser.add_argument("--profile", default="native", choices=sorted(profiles.PROFILES), help="see profiles.py")
    parser.add_argument("--join", action="store_true", help="layers that read the same input run as one")
    parser.add_argument("--head", action="store_true", help="quantize the head and the embedding too")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="llama.cpp too")
    parser.add_argument("--out", type=Path, metavar="JSON", help="default: a name of what is measured")
    options = parser.parse_args()
    place = source(options.model)
    if _PART in os.environ:
        _part(place, options)
        return
    model = place.name if isinstance(place, Path) else place
    path = options.out or RESULTS / f"cpu-decode-{'-'.join((model, *_marks(options)))}.json"
    found: dict[str, Any] = {"machine": machine(), "model": model, "profile": options.profile}
    found |= {"threads": options.threads, "torch": torch.__version__, "joined": options.join}
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**found, "rows": []}
    merged_runs(old, {**found, "rows": []})  # raises now if they don't go together, not in half an hour
    made = merged_runs(old, {**found, "rows": _parts(options)})
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _marks(options: argparse.Namespace) -> list[str]:
    """What is said in the name of a file: whatever changes the results in it."""
    flags = [name.replace("_", "-") for name in ("head", "join", "compile", "cpp_wrapper") if getattr(options, name)]
    tokens = [] if options.tokens == _TOKENS else [f"{options.tokens}-tokens"]
    return [options.profile, f"{options.threads}-threads", *flags, *tokens]


def _parts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of every scheme, each in a process of its own (`run`); float32 comes with each."""
    others = [s for s in options.schemes if s != "float32"] or ["float32"]
    shown = f"from bench.cpu import profiles; profiles.apply({options.profile!r})"  # before torch is imported
    code = f"{shown}; from bench.cpu import decode; decode.main()"
    rows = []
    for scheme in others:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.json"
            last = [] if scheme == others[-1] else ["--no-peers"]
            call = [sys.executable, "-c", code, *sys.argv[1:], *last, "--schemes", *dict.fromkeys(("float32", scheme))]
            subprocess.run(call, env={**os.environ, _PART: str(path)}, check=True)
            made = json.loads(path.read_text(encoding="utf-8"))
            rows += [{"run": _PEER if row["way"] == _PEER else scheme, **row} for row in made]
    return rows


def _part(place: str | Path, options: argparse.Namespace) -> None:
    """Measures the schemes that are asked for in this process, in turns."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = [*_ours(place, options), *_peers(Path(folder), options)]
        for _ in range(options.turns):
            for run in runs:
                run.seconds += run.decode(options.tokens)
                run.tokens = getattr(run.decode, "tokens", [])
    Path(os.environ[_PART]).write_text(json.dumps(_rows(runs)), encoding="utf-8")


def _ours(place: str | Path, options: argparse.Namespace) -> list[Run]:
    """Every scheme in every way."""
    if options.compile:
        import torch._inductor.config as inductor

        inductor.cpp_wrapper = options.cpp_wrapper
        if profiles.masked():
            inductor.cpp.simdlen = 256  # it asks the system, not the processor
    runs = []
    for name in options.schemes:
        model = subject(place, name, options.head, options.join)
        nbytes = bytes_per_token(model)
        runs.append(Run("eager", name, Eager(model), nbytes))
        if options.compile:
            made = Compiled(model, length=64 * -(-(options.tokens + 16) // 64))
            made(4)  # compiles
            runs.append(Run("compiled", name, made, nbytes))
            runs.append(Run("compiled, unguarded", name, Unguarded(made), nbytes))
    return runs


def _peers(folder: Path, options: argparse.Namespace) -> list[Run]:
    """llama.cpp on the demo's model; its build knows no profiles."""
    if not options.peers or options.model or options.profile != "native":
        return []
    try:
        found = list(llama.files(folder))
    except Missing as missing:
        print(f"llama.cpp: {missing}")
        return []
    return [Run(_PEER, name, llama.Llama(path, options.threads), size) for name, path, size in found]


def _rows(runs: list[Run]) -> list[dict[str, Any]]:
    """Prints them, and returns them as data; ratios are to float32 in the same way."""
    floats = {run.way: run for run in runs if run.scheme == "float32"}
    eager = {run.scheme: run.tokens for run in runs if run.way == "eager"}
    rows = []
    for run in sorted(runs, key=lambda run: [r.way for r in runs].index(run.way)):
        rate = 1 / min(run.seconds)
        row = {"way": run.way, "scheme": run.scheme, "tokens_per_s": rate, "mb_per_token": run.nbytes / 1e6}
        row |= {"median_tokens_per_s": 1 / statistics.median(run.seconds), "gbs": run.nbytes * rate / 1e9}
        line = f"{run.way:20}{run.scheme:22}{rate:7.1f} tokens/s {run.nbytes / 1e6:7.1f} MB {row['gbs']:5.1f} GB/s"
        if run.way in floats:
            plain = floats[run.way]
            row |= {"speedup": min(plain.seconds) * rate, "bytes_ratio": plain.nbytes / run.nbytes}
            row["of_ratio"] = row["speedup"] / row["bytes_ratio"]
            medians = statistics.median(plain.seconds) / statistics.median(run.seconds)
            row["median_of_ratio"] = medians / row["bytes_ratio"]
            pairs = zip(run.tokens, eager[run.scheme], strict=True)
            row["tokens_like_eager"] = next((i for i, (a, b) in enumerate(pairs) if a != b), len(run.tokens))
            line += f", {row['speedup']:.2f} times float32, {row['of_ratio']:.2f} of the ratio of bytes"
            line += f" ({row['median_of_ratio']:.2f} by medians)"
        rows.append(row)
        print(line)
    return rows


if __name__ == "__main__":
    main()
