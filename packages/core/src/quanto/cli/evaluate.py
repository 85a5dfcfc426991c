# SPDX-License-Identifier: Apache-2.0
"""`quanto eval`: what a folder's model knows, and how far it is from the float one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import length_for, read_tokens
from .output import print_json

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of a model, floating or quantized, or a name on a hub.")],
    data: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="A text; for other than language models, JSON lines."),
    ],
    against: Annotated[Path | None, typer.Option(help="The float model, to compare with.")] = None,
    block: Annotated[
        int | None, typer.Option(min=2, help="Tokens per block; default: 2048 as in papers, or what the model takes.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=0, help="Blocks to measure; 0: the whole text.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure what a model knows, and against the float model what it lost; says by which convention."""
    from ..serialization.foreign import fetch, open_task

    folder, against = fetch(folder), None if against is None else fetch(against)
    task = open_task(folder)
    if task is not None:
        found = _examples(task, data, None if against is None else open_task(against))
    else:
        found = _language(folder, data, against, block, blocks)
    if as_json:
        print_json({name: value.to_dict() for name, value in found.items()})
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in found.items()))


def _language(folder: Path, data: Path, against: Path | None, block: int | None, blocks: int) -> dict[str, Any]:
    from ..eval import divergence, perplexity
    from ..nn.base import QModule
    from ..serialization.foreign import open_model

    model, encode = open_model(folder)
    for name, module in model.named_modules():
        if isinstance(module, QModule) and module.scheme.dynamic is False and module.input_scale is None:
            raise ValueError(f"{folder}: {name} has static activations and no scale for them: it was never calibrated")
    block = length_for(model, block, 2048, "--block")
    tokens = read_tokens(data, encode, block, blocks * block)
    found: dict[str, Any] = {"perplexity": perplexity(model, tokens, block=block)}
    if against is not None:
        found["divergence"] = divergence(model, open_model(against)[0], tokens, block=block)
    return found


def _examples(task: Any, data: Path, reference: Any) -> dict[str, Any]:
    from ..eval.examples import read_examples
    from ..eval.tasks import measure

    return measure(task, read_examples(data), reference)
