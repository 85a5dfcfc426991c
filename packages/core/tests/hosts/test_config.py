# SPDX-License-Identifier: Apache-2.0
"""The fields of a config."""

from __future__ import annotations

from typing import Any

import pytest

from quanto import Scheme
from quanto.hosts.config import FLAGS, SCHEME, ConfigFields, refuse_unknown, weights_of


def make(**given: Any) -> ConfigFields:
    fields = {**dict.fromkeys(SCHEME), **FLAGS, "rules": None, "modules": None, "modules_to_not_convert": None}
    made = ConfigFields()
    made.set_fields({**fields, "format_version": 1, **given}, "a package")
    return made


def test_only_what_is_not_default_is_written() -> None:
    made = make(weights="int4", group_size=32, modules_to_not_convert=["a"], qat=True)
    assert made.scheme == Scheme("int4", group_size=32)
    expected = {"quant_method": "quanto", "format_version": 1, "weights": "qint4", "group_size": 32, "qat": True}
    assert made.fields() == {**expected, "modules_to_not_convert": ["a"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": "int8", "qat": 1}, "qat must be True or False"),
        ({"weights": "int8", "format_version": 2}, "this a package reads up to 1"),
        ({"weights": "int8", "format_version": "1"}, "positive integer"),
        ({"weights": "int8", "modules_to_not_convert": "a"}, "list of strings"),
        ({}, "needs rules"),
        ({"weights": "int9"}, "int9"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


def test_unknown_fields_are_refused_with_a_guess() -> None:
    refuse_unknown({}, SCHEME)
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        refuse_unknown({"weight": "int8"}, SCHEME)


def test_weights_have_a_second_name() -> None:
    more = {"weights_dtype": "int4", "other": 1}
    assert weights_of("int8", more) == "int4"
    assert more == {"other": 1}
    assert weights_of("int4", more) == "int4"
    with pytest.raises(ValueError, match="another name of weights"):
        weights_of("int4", {"weights_dtype": "int8"})
