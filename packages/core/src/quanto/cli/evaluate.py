# SPDX-License-Identifier: Apache-2.0
"""`quanto eval`: the perplexity of a folder's model, and how far it is from the float one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import read_tokens

__all__ = ["evaluate"]


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of a language model, floating or quantized.")],
    data: Annotated[Path, typer.Option(help="The text to measure on.")],
    against: Annotated[Path | None, typer.Option(help="The float model, for divergence and agreement.")] = None,
    block: Annotated[int, typer.Option(min=2, help="Tokens per block; papers use 2048.")] = 2048,
    blocks: Annotated[int, typer.Option(min=0, help="Blocks to measure; 0: the whole text.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure perplexity, and against the float model divergence and agreement; says by which convention."""
    from ..eval import divergence, perplexity
    from ..serialization.foreign import open_model

    model, encode = open_model(folder)
    tokens = read_tokens(data, encode, block, blocks * block)
    found = perplexity(model, tokens, block=block)
    result: dict[str, Any] = {"perplexity": asdict(found)}
    lines = [f"perplexity {found}"]
    if against is not None:
        reference, _ = open_model(against)
        distance = divergence(model, reference, tokens, block=block)
        result["divergence"] = distance.to_dict()
        lines += [str(distance), f"log-perplexity {distance.rise:+.5f} against the float model"]
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(lines))
