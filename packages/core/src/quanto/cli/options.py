# SPDX-License-Identifier: Apache-2.0
"""Words of the command line that several subcommands understand alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .._context import context_limit
from .._text import read_text
from ..scheme import Rule, Scheme

__all__ = [
    "are_steps",
    "length_for",
    "read_rules",
    "read_scheme",
    "read_tokens",
    "sequences",
    "split_words",
    "tokens_of",
]


def read_scheme(weights: str, algorithm: str, group_size: int, activations: str = "") -> Scheme | None:
    """The scheme of the options; None if none is given.

    Raises:
        ValueError: if they conflict.
    """
    fields = {"activations": activations, "algorithm": algorithm, "group_size": group_size}
    given = {name: value for name, value in fields.items() if value}
    if not weights:
        if given:
            raise ValueError(f"--{next(iter(given)).replace('_', '-')} needs --weights")
        return None
    named = Scheme.of(weights)
    return Scheme.from_dict({**named.to_dict(), **given})


def read_rules(path: Path | None) -> list[Rule]:
    """Rules of a TOML or JSON file: a list `rules` of tables with `pattern` and the fields of a scheme.

    A table that has `float = true` leaves its modules floating.

    Raises:
        ValueError: naming the file and the rule that is none.
    """
    if path is None:
        return []
    data = _parse(path)
    rules = data.get("rules") if isinstance(data, dict) else data
    if not isinstance(rules, list):
        raise ValueError(f"{path}: a file of rules has a list 'rules' of tables with pattern and weights")
    return [_rule(path, index, entry) for index, entry in enumerate(rules)]


def _parse(path: Path) -> Any:
    text = read_text(path)
    try:
        if path.suffix == ".json":
            return json.loads(text)
        return _toml().loads(text)
    except ValueError as error:  # both decoders' errors are
        raise ValueError(f"{path}: {error}") from None


def _toml() -> Any:
    try:
        return import_module("tomllib")
    except ImportError:  # before Python 3.11
        raise ValueError("reading TOML needs Python 3.11; write the rules as .json") from None


def _rule(path: Path, index: int, entry: Any) -> Rule:
    if not isinstance(entry, dict) or not isinstance(entry.get("pattern"), str):
        raise ValueError(f"{path}: rules[{index}] has no pattern")
    fields = {name: value for name, value in entry.items() if name not in ("pattern", "float")}
    floating = entry.get("float", False)
    if floating is not False and (floating is not True or fields):
        raise ValueError(f"{path}: rules[{index}]: float = true stands alone beside pattern")
    try:
        return Rule(entry["pattern"], None if floating else Scheme.from_dict(fields))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: rules[{index}] ({entry['pattern']}): {error}") from None


def read_tokens(path: Path, encode: Any, least: int, most: int = 0) -> Tensor:
    """The tokens of a text, int64 `[n]`; at most so many, 0 for all.

    Raises:
        ValueError: if it is not UTF-8, or there are fewer than `least`.
    """
    return tokens_of(read_text(path), path, encode, least, most)


def tokens_of(text: str, path: Path, encode: Any, least: int, most: int = 0) -> Tensor:
    """`read_tokens` of a text that was read from a path."""
    if most:  # no token is longer than this on average, and tokenizers are slow on megabytes
        text = text[: 16 * most]
    tokens: Tensor = encode(text)
    if len(tokens) < least:
        raise ValueError(f"{path} has {len(tokens)} tokens, at least {least} are needed")
    return tokens[:most] if most else tokens


def length_for(model: nn.Module, given: int | None, usual: int, option: str) -> int:
    """How many tokens are read at a time: what is given, else what is usual or the model takes.

    Raises:
        ValueError: if the model takes fewer than are given.
    """
    limit = context_limit(model)
    if given is None:
        return min(usual, limit)
    if given > limit:
        raise ValueError(f"{option} {given} is too long: the model takes {limit} tokens")
    return given


def sequences(tokens: Tensor, length: int) -> list[Tensor]:
    """Whole sequences of a text's tokens, `[1, length]` each."""
    return [block.unsqueeze(0) for block in tokens[: len(tokens) // length * length].view(-1, length)]


def split_words(values: Iterable[str]) -> list[str]:
    """Options that may be given several times, or with commas between."""
    return [word for value in values for word in value.split(",") if word]


def are_steps(names: list[str]) -> bool:
    """Whether an algorithm's words are steps of a pipeline, and not the name of a quantizer."""
    from ..algorithms.steps import presets, steps

    return bool(names) and all(name in steps or name in presets for name in names)
