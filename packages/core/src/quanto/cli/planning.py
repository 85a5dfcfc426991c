# SPDX-License-Identifier: Apache-2.0
"""`quanto plan`: rules that spend a budget where it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..scheme import Scheme
from .options import length_for, read_tokens, sequences, split_words
from .output import print_json

__all__ = ["plan"]


def plan(
    folder: Annotated[Path, typer.Argument(help="A folder of a floating language model.")],
    bits: Annotated[float, typer.Option(min=0, help="Budget: bits per weight on average, scales included.")] = 0.0,
    size: Annotated[int, typer.Option(min=0, help="Budget: bytes of the quantized layers.")] = 0,
    loss: Annotated[float, typer.Option(min=0, help="Budget: rise of the divergence, in nats per token.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0, help="Budget: time of one token through the layers, here.")] = 0.0,
    data: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A text to measure sensitivities on.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences of --data to use.")] = 8,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens in each; default: 512, or what the model takes.")
    ] = None,
    candidates: Annotated[str, typer.Option(help="Schemes to choose from, such as int3,int4,int8.")] = "",
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Measure GPTQ's rounding on --data, for quantize with --data.")
    ] = False,
    exclude: Annotated[list[str], typer.Option(help="Modules to leave floating: a glob; may be repeated.")] = [],  # noqa: B006
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rules to this file, TOML or .json.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Keep the sensitivities in this JSON file.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Write the trade-off to this picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Plan mixed precision under a budget, for `quanto quantize --rules`."""
    from ..planner import plan as make
    from ..planner.plan import CANDIDATES
    from ..serialization.folder import replace_text
    from ..serialization.foreign import fetch, known_layers, open_model

    given = {"bits": bits, "size": size, "loss": loss, "seconds": seconds}
    budget: dict[str, Any] = {name: value for name, value in given.items() if value}
    if len(budget) != 1:
        raise ValueError("give one budget: --bits, --size, --loss or --seconds")
    if calibrated and data is None:
        raise ValueError("--calibrated needs --data")
    schemes = [Scheme.of(word) for word in split_words([candidates])] or CANDIDATES
    folder = fetch(folder)
    model, encode = open_model(folder)
    batches = None
    if data is not None:
        length = length_for(model, length, 512, "--length")
        batches = sequences(read_tokens(data, encode, length, samples * length), length)
    layers = known_layers(folder)
    others = [] if layers is None else [name for name, _ in model.named_modules() if name and name not in layers]
    found = make(
        model,
        batches,
        candidates=schemes,
        exclude=[*split_words(exclude), *others],
        cache=cache,
        calibrated=calibrated,
        **budget,
    )
    if output is not None:
        replace_text(output, found.to_json() if output.suffix == ".json" else found.to_toml())
    if chart is not None:
        found.draw(chart)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(str(found))
