# SPDX-License-Identifier: Apache-2.0
"""The fields of a config."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import quanto
from quanto import Scheme
from quanto.hosts.config import FLAGS, SCHEME, ConfigFields, fields_of, refuse_unknown, weights_of
from quanto.hosts.layers import describe


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


def test_the_fields_of_a_model_that_had_no_config() -> None:
    layers = [torch.nn.Linear(64, 64) for _ in range(3)]
    model = quanto.quantize(torch.nn.Sequential(*layers), "int4", group_size=32, rules={"2": "int8"})
    quanto.freeze(model[0])
    found = fields_of(describe(model))
    assert (found["weights"], found["group_size"], found["qat"]) == ("int4", 32, True)
    assert [entry["names"] for entry in found["modules"]] == [["0"], ["1"], ["2"]]
    quanto.freeze(model)
    assert not fields_of(describe(model))["qat"]
