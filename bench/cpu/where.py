# SPDX-License-Identifier: Apache-2.0
"""Says where the time of a token goes that is decoded by eager calls: `python -m bench.cpu.where`.

Linear operators are timed within the token, called bare one after another with the same arguments, and replaced by
ones that return at once, so that only what transformers, torch and quanto do between them is left; of that, the linear
modules by themselves, beside as many of `nn.Linear`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from quanto.kernels import kernels
from quanto.nn.linear import QLinear

from ..core import RESULTS, machine
from .decoder import PROMPT, UNTIMED, Eager
from .merge import merged_runs
from .subjects import SCHEMES, bytes_per_token, source, subject

Operator = Callable[..., Tensor]
_DEFAULT = ("int8, bfloat16", "int4 g128, bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu.where", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--model", help="as of bench.cpu.decode")
    parser.add_argument("--schemes", nargs="+", default=_DEFAULT, choices=[s for s in SCHEMES if SCHEMES[s]])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = source(options.model)
    name = place.name if isinstance(place, Path) else place
    path = RESULTS / f"cpu-where-{name}-{options.threads}-threads.json"
    found = {"machine": machine(), "model": name, "threads": options.threads, "torch": torch.__version__, "rows": []}
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else found
    merged_runs(old, found)  # raises if they don't go together
    rows = [_row(place, scheme, options.tokens) for scheme in options.schemes]
    path.write_text(json.dumps(merged_runs(old, {**found, "rows": rows}), indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def _row(place: str | Path, scheme: str, count: int) -> dict[str, Any]:
    """Measures a scheme, head quantized and layers joined; prints and returns milliseconds."""
    model = subject(place, scheme, head=True, join=True)
    plain = Eager(model)
    plain(UNTIMED + 1)  # chooses kernels
    timed = _Timed(model)
    found = {"token": plain(count), "token, operators timed": timed(count)}
    found["operators within"] = timed.spent[UNTIMED:]
    pairs = zip(found["token, operators timed"], found["operators within"], strict=True)
    found["between operators"] = [token - within for token, within in pairs]
    calls, modules, ids, cache = _record(plain)
    found["operators bare"] = _repeat(count, lambda: [call(*args) for call, args, _ in calls])
    results = itertools.cycle([result for *_, result in calls])
    with _replaced(lambda _: lambda *_: next(results)):
        found["operators at once"] = _repeat(count, lambda: Eager.step(plain, ids, cache))
        found["modules at once"] = _repeat(count, lambda: [module(x) for module, x in modules])
    linear, x = nn.Linear(64, 64, bias=False), torch.randn(1, 64)

    def same(*_: Tensor | None) -> Tensor:
        return x

    with mock.patch.object(nn.functional, "linear", same):
        found["nn.Linear at once"] = _repeat(count, lambda: [linear(x) for _ in modules])
    row: dict[str, Any] = {"run": scheme, "mb_per_token": bytes_per_token(model) / 1e6}
    row |= {"operators": len(calls), "modules": len(modules)}
    print(f"{scheme}: {row['mb_per_token']:.0f} MB, {len(calls)} operators, {len(modules)} linear modules")
    for part, seconds in found.items():
        row[part] = {"best_ms": min(seconds) * 1e3, "median_ms": statistics.median(seconds) * 1e3}
        print(f"  {part:24}{row[part]['best_ms']:8.2f} ms, median {row[part]['median_ms']:8.2f}")
    return row


class _Timed(Eager):
    """Adds up the seconds within operators, token by token."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.spent: list[float] = []

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        """See `Eager.step`."""
        self.spent.append(0.0)
        with _replaced(self._timed):
            return super().step(ids, cache)

    def _timed(self, call: Operator) -> Operator:
        def run(*args: Any) -> Tensor:
            start = time.perf_counter()
            made = call(*args)
            self.spent[-1] += time.perf_counter() - start
            return made

        return run


@contextmanager
def _replaced(make: Callable[[Operator], Operator]) -> Iterator[None]:
    """Within the block, each operator that a linear layer has called is what `make` makes of it."""
    true = dict(kernels.direct)
    kernels.direct.update({key: make(call) for key, call in true.items()})
    try:
        yield
    finally:
        kernels.direct.update(true)


def _record(plain: Eager) -> tuple[list[Any], list[tuple[nn.Module, Tensor]], Tensor, Any]:
    """Operators with arguments and results, and modules with inputs, of one token; that token, and the cache before."""
    calls: list[Any] = []
    modules: list[tuple[nn.Module, Tensor]] = []

    def recorded(call: Operator) -> Operator:
        def run(*args: Any) -> Tensor:
            calls.append((call, args, made := call(*args)))
            return made

        return run

    cache = plain.cache()
    ids = Eager.step(plain, torch.tensor([PROMPT]), cache)
    layers = [m for m in plain.model.modules() if isinstance(m, QLinear)]
    hooks = [m.register_forward_pre_hook(lambda module, given: modules.append((module, given[0]))) for m in layers]
    with _replaced(recorded):
        Eager.step(plain, ids, cache)
    for hook in hooks:
        hook.remove()
    return calls, modules, ids, cache


def _repeat(count: int, run: Callable[[], Sequence[Any] | Tensor]) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[UNTIMED:]


if __name__ == "__main__":
    main()
