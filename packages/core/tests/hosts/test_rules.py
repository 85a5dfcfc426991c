# SPDX-License-Identifier: Apache-2.0
"""Which names a pattern matches."""

from __future__ import annotations

import pytest

from quanto.hosts.rules import Pattern, parse_rules


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("lm_head", "lm_head_2", False),
        ("layers.1", "model.layers.1.mlp.up_proj", True),
        ("layers.1", "model.layers.11.mlp.up_proj", False),
        ("proj", "model.q_proj", False),
        ("q_proj", "model.q_proj", True),
        ("*.layers.[01].*", "model.layers.1.mlp", True),
        ("*.layers.[01].*", "model.layers.11.mlp", False),
        ("*gate", "mlp.gate", True),
        ("*gate", "mlp.gate_proj", False),
        ("re:.*gate", "mlp.gate", True),
        ("re:.*gate", "mlp.gate_proj", False),
        ("re:a|b", "b", True),
        ("a.b", "aXb", False),
    ],
)
def test_matches(text: str, name: str, expected: bool) -> None:
    assert Pattern(text).matches(name) is expected


def test_rules_are_read_from_every_form() -> None:
    made = parse_rules({"a.*": "int4", "re:b": None})
    assert [rule.to_dict() for rule in made] == [
        {"pattern": "a.*", "scheme": {"weights": "int4"}},
        {"pattern": "re:b", "scheme": None},
    ]
    assert parse_rules([rule.to_dict() for rule in made]) == made


@pytest.mark.parametrize(
    ("rules", "message"),
    [("a", "must be a mapping"), (["a"], "pair of a pattern"), ({"re:(": "int8"}, "regular expression")],
)
def test_what_is_no_rule_is_named(rules: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rules(rules)  # type: ignore[arg-type]
