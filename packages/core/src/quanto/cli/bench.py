# SPDX-License-Identifier: Apache-2.0
"""`quanto bench`: how fast this machine's kernels are for one shape."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer

from ..kernels import kernels
from ..scheme import Scheme
from .options import split_words
from .output import print_json
from .table import Table, show

__all__ = ["bench"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def bench(
    shape: Annotated[str, typer.Argument(help="OUTxIN of a linear layer, such as 4096x4096.")] = "4096x4096",
    weights: Annotated[str, typer.Option(help="Schemes or data types, with commas between.")] = "int8,int4,w8a8",
    tokens: Annotated[str, typer.Option(help="Rows of input, with commas between.")] = "1,16",
    dtype: Annotated[str, typer.Option(help="Of the activations: float32, bfloat16 or float16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.001, help="How long to measure each.")] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Time the linear kernels that quanto chooses here, beside the floating layer."""
    size = _shape(shape)
    counts = [_count(word) for word in split_words([tokens])]
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    schemes = [None, *(Scheme.of(word) for word in split_words([weights]))]
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {error}") from None
    try:
        rows = [_row(size, scheme, _DTYPES[dtype], place, counts, seconds) for scheme in schemes]
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise ValueError(f"{shape}: {error}") from None
    if as_json:
        print_json({"shape": list(size), "dtype": dtype, "device": device, "rows": rows})
        return
    heads = ("weights", "kernel", *(f"{n} rows µs" for n in counts), "GB/s of weights")
    cells = [
        (row["weights"], row["kernel"], *(f"{t * 1e6:.1f}" for t in row["seconds"]), f"{row['gbps']:.1f}")
        for row in rows
    ]
    show(lambda width: [Table(f"{size[0]}×{size[1]}, {dtype} on {device}", heads, tuple(cells))])


def _row(
    shape: tuple[int, int],
    scheme: Scheme | None,
    dtype: torch.dtype,
    device: torch.device,
    counts: list[int],
    for_s: float,
) -> dict[str, Any]:
    from ..model import freeze, quantize
    from ..planner.speed import time_layer

    timed = [time_layer(shape, scheme, dtype, device, n, for_s) for n in counts]
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, device="meta" if scheme is None else device)
    kernel = "torch"
    if scheme is not None:
        made: Any = freeze(quantize(layer, scheme=scheme, progress=False), progress=False)
        kernel = kernels.choose(made.request(dtype=dtype)).spec.name
    size = sum(p.nbytes for p in layer.parameters())
    name = str(dtype).removeprefix("torch.") if scheme is None else str(scheme)
    return {"weights": name, "kernel": kernel, "seconds": timed, "bytes": size, "gbps": size / timed[0] / 1e9}


def _shape(text: str) -> tuple[int, int]:
    words = text.lower().replace("×", "x").split("x")
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"a shape is OUTxIN, such as 4096x4096, got {text!r}")
    return int(words[0]), int(words[1])


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise ValueError(f"--tokens are positive numbers, got {word!r}")
    return int(word)
