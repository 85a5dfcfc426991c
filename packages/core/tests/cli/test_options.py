# SPDX-License-Identifier: Apache-2.0
"""Rules, schemes and texts as the command line reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import quanto
from quanto.cli.options import read_rules, read_scheme, read_tokens, split_words

RULES = [{"pattern": "*.down_proj", "weights": "int8"}, {"pattern": "re:.*0", "float": True}]


def test_schemes() -> None:
    assert read_scheme("", "", 0) is None
    assert read_scheme("int4", "mse", 64) == quanto.Scheme("int4", algorithm="mse", group_size=64)
    assert read_scheme("w8a8", "", 0) == quanto.presets["w8a8"]
    with pytest.raises(ValueError, match="--group-size needs --weights"):
        read_scheme("", "", 32)


def test_rules_of_json(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": RULES}))
    one, two = read_rules(path)
    assert (one.pattern, one.scheme, two.scheme) == ("*.down_proj", quanto.Scheme("int8"), None)
    assert read_rules(None) == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reads no TOML")
def test_rules_of_a_plan(tmp_path: Path) -> None:
    found = quanto.plan(torch.nn.Sequential(torch.nn.Linear(64, 64)), bits=100)
    path = tmp_path / "rules.toml"
    path.write_text(found.to_toml())
    assert read_rules(path) == found.rules


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.json", "{", "Expecting"),
        ("r.json", "{}", "has a list 'rules'"),
        ("r.json", '[{"weights": "int8"}]', r"rules\[0\] has no pattern"),
        ("r.json", '[{"pattern": "a", "weights": "int9"}]', r"rules\[0\] \(a\): .*int9"),
        ("r.json", '[{"pattern": "a", "bits": 4}]', "unknown scheme fields bits"),
        ("r.json", '[{"pattern": "a", "weights": "int8", "float": true}]', "stands alone"),
        ("r.toml", "rules = 3 4", r"r\.toml"),
    ],
)
def test_bad_rules_name_the_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_rules(path)
    assert name in str(raised.value)


def test_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdef" * 100)
    assert read_tokens(path, lambda text: torch.tensor(list(text.encode())), 3, 5).tolist() == list(b"abcde")
    with pytest.raises(ValueError, match="has 600 tokens, at least 700"):
        read_tokens(path, lambda text: torch.tensor(list(text.encode())), 700)


def test_words() -> None:
    assert split_words(["a,b", "c", ""]) == ["a", "b", "c"]
