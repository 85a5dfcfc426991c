# SPDX-License-Identifier: Apache-2.0
"""Schemes: every conflict has a sentence, every valid one survives JSON, and rules match as they say."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import quanto
from quanto import Rule, Scheme, presets

QTYPES = sorted(quanto.qtypes)
SCALES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES |= {"e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
ACTIVATIONS = [name for name in QTYPES if quanto.qtypes[name].bits == 8 and quanto.qtypes[name].block is None]


@st.composite
def _schemes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that do not conflict."""
    q = quanto.qtypes[draw(st.sampled_from(QTYPES))]
    fields: dict[str, Any] = {"weights": q.name}
    if draw(st.booleans()):
        fields["activations"] = draw(st.sampled_from(ACTIVATIONS))
        fields["dynamic"] = draw(st.sampled_from([None, True, False]))
    if q.block is not None:
        fields |= draw(st.sampled_from([{}, {"group_size": q.block}, {"granularity": "group"}]))
    else:
        size, block = draw(st.integers(1, 2**31 - 1)), (draw(st.integers(1, 512)), draw(st.integers(1, 512)))
        kinds = [{"group_size": size}, {"group_size": size, "granularity": "group"}, {"block": block}]
        kinds += [{"granularity": name} for name in ("tensor", "channel", "group")]
        fields |= draw(st.sampled_from([{}, *kinds, {"block": block, "granularity": "block"}]))
    if q.is_integer:
        fields["symmetric"] = draw(st.sampled_from([None, True, False]))
    if q.scale_dtype is None:
        fields["scale_dtype"] = draw(st.sampled_from([None, *SCALES]))
    fields["algorithm"] = draw(st.sampled_from([None, "absmax", "minmax", "something of a plugin"]))
    if q.is_integer and not fields.get("symmetric") and fields["algorithm"] != "absmax":
        fields["zero_point"] = draw(st.sampled_from([None, "int", "float"]))
    return fields


@given(_schemes())
def test_dictionaries_are_inverse_and_json(fields: dict[str, Any]) -> None:
    scheme = Scheme(**fields)
    data = scheme.to_dict()
    assert None not in data.values()
    assert set(data) <= {f.name for f in dataclasses.fields(Scheme)}
    again = Scheme.from_dict(json.loads(json.dumps(data)))
    assert again == scheme
    assert hash(again) == hash(scheme)
    assert Scheme.of(data) == scheme
    for name, value in fields.items():
        assert getattr(scheme, name) == value


@given(_schemes(), st.lists(st.integers(1, 6), max_size=2), st.integers(1, 3000))
def test_blocks_lie_within_the_weight(fields: dict[str, Any], lead: list[int], size: int) -> None:
    scheme, shape = Scheme(**fields), (*lead, size)
    blocks = scheme.block_size(shape)
    if scheme.granularity == "tensor":
        assert blocks == ()
        return
    assert len(blocks) == len(shape)
    assert all(1 <= b <= n for b, n in zip(blocks, shape, strict=True))
    rows, columns = scheme.block or (1, size)
    assert set(blocks[:-2]) <= {1}
    assert blocks[-2:-1] == ((min(rows, lead[-1]),) if lead else ())
    if scheme.block is not None or scheme.granularity == "channel":
        assert blocks[-1] == min(columns, size)


@pytest.mark.parametrize(
    ("fields", "shape", "expected"),
    [
        ({"weights": "int8"}, (8, 300), (1, 300)),
        ({"weights": "float8"}, (8, 300), (1, 300)),
        ({"weights": "int4"}, (8, 512), (1, 128)),
        ({"weights": "int4"}, (8, 100), (1, 100)),
        ({"weights": "int4"}, (8, 576), (1, 96)),
        ({"weights": "int4"}, (8, 4304), (1, 128)),
        ({"weights": "int3"}, (4, 8, 512), (1, 1, 128)),
        ({"weights": "int2", "group_size": 32}, (8, 512), (1, 32)),
        ({"weights": "nf4"}, (8, 512), (1, 64)),
        ({"weights": "fp4"}, (8, 512), (1, 64)),
        ({"weights": "mxfp4"}, (8, 512), (1, 32)),
        ({"weights": "mxfp8"}, (8, 20), (1, 20)),
        ({"weights": "mxfp8"}, (8, 100), (1, 32)),
        ({"weights": "nvfp4"}, (8, 512), (1, 16)),
        ({"weights": "int4", "granularity": "channel"}, (8, 512), (1, 512)),
        ({"weights": "int4", "granularity": "tensor"}, (8, 512), ()),
        ({"weights": "int8", "granularity": "group"}, (8, 512), (1, 128)),
        ({"weights": "float8", "granularity": "group"}, (8, 512), (1, 64)),
        ({"weights": "int8", "group_size": 64}, (8, 512), (1, 64)),
        ({"weights": "int8", "block": (128, 128)}, (300, 512), (128, 128)),
        ({"weights": "int8", "block": (128, 128)}, (8, 64), (8, 64)),
        ({"weights": "int8", "block": (2, 128)}, (4, 8, 512), (1, 2, 128)),
        ({"weights": "int8", "block": (2, 128)}, (512,), (128,)),
        ({"weights": "int8"}, (7,), (7,)),
        ({"weights": "int8"}, (8, 0), (1, 1)),
        ({"weights": "int4"}, (8, 0), (1, 1)),
        ({"weights": "mxfp4"}, (8, 0), (1, 1)),
        ({"weights": "int4"}, (0, 512), (1, 128)),
    ],
)
def test_which_block_a_weight_gets(fields: dict[str, Any], shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert Scheme(**fields).block_size(shape) == expected


CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({}, "a scheme needs weights or activations"),
    ({"activations": "int8"}, "activations without weights are not supported: give weights too"),
    ({"weights": "int5"}, "unknown qtype 'int5'; known: "),
    ({"weights": "int8", "activations": "int9"}, "unknown qtype 'int9'"),
    ({"weights": "int8", "granularity": "row"}, "granularity must be one of tensor, channel, group, block, got 'row'"),
    ({"weights": "int4", "group_size": 0}, "group_size must be a positive integer, got 0"),
    ({"weights": "int4", "group_size": -32}, "group_size must be a positive integer, got -32"),
    ({"weights": "int4", "group_size": 32.0}, "group_size must be a positive integer, got 32.0"),
    ({"weights": "int4", "group_size": True}, "group_size must be a positive integer, got True"),
    ({"weights": "int4", "group_size": "32"}, "group_size must be a positive integer, got '32'"),
    ({"weights": "int4", "group_size": 2**31}, "group_size must be below 2**31, got 2147483648"),
    ({"weights": "int4", "group_size": 8, "granularity": "channel"}, "group_size=8 conflicts with granularity='chan"),
    ({"weights": "int4", "group_size": 8, "granularity": "tensor"}, "group_size=8 conflicts with granularity='tensor"),
    ({"weights": "int4", "group_size": 32, "block": (4, 4)}, "group_size=32 conflicts with granularity='block'"),
    ({"weights": "mxfp4", "group_size": 64}, "mxfp4 fixes groups of 32; leave group_size out, got 64"),
    ({"weights": "nvfp4", "granularity": "channel"}, "nvfp4 fixes groups of 16; granularity='channel' con"),
    ({"weights": "mxfp8", "block": (4, 4)}, "mxfp8 fixes groups of 32; granularity='block' conflicts with it"),
    ({"weights": "int8", "granularity": "block"}, "granularity='block' needs block=(rows, columns)"),
    ({"weights": "int8", "granularity": "group", "block": (4, 4)}, "block=(4, 4) conflicts with granularity='group'"),
    ({"weights": "int8", "block": (4,)}, "block must be two positive integers below 2**31, got (4,)"),
    ({"weights": "int8", "block": (4, 0)}, "block must be two positive integers below 2**31, got (4, 0)"),
    ({"weights": "int8", "block": (4, 2.0)}, "block must be two positive integers below 2**31, got (4, 2.0)"),
    ({"weights": "int8", "block": (True, 4)}, "block must be two positive integers below 2**31, got (True, 4)"),
    ({"weights": "int8", "block": (2**31, 4)}, "block must be two positive integers below 2**31"),
    ({"weights": "int8", "symmetric": 1}, "symmetric must be a bool or None, got 1"),
    ({"weights": "int8", "activations": "int8", "dynamic": "no"}, "dynamic must be a bool or None, got 'no'"),
    ({"weights": "int8", "algorithm": 3}, "algorithm must be a str or None, got 3"),
    ({"weights": "nf4", "symmetric": False}, "nf4 has no zero points: symmetric=False needs an integer qtype"),
    ({"weights": "int8", "scale_dtype": "float8"}, "scale_dtype must be one of float32, bfloat16, float16, e8m0, e"),
    ({"weights": "int8", "scale_dtype": torch.int8}, "scale_dtype must be one of float32, bfloat16, float16, e8m0, e"),
    ({"weights": "mxfp4", "scale_dtype": "float32"}, "mxfp4 fixes its scale dtype; leave scale_dtype out, got"),
    ({"weights": "int8", "activations": "int4"}, "activations must be int8 or float8, got int4"),
    ({"weights": "int8", "activations": "mxfp8"}, "activations must be int8 or float8, got mxfp8"),
    ({"weights": "int8", "dynamic": True}, "dynamic is about activations: give activations too"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), CONFLICTS, ids=[m for _, m in CONFLICTS])
def test_conflicts_are_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Scheme(**fields)
    if all(type(value) in (str, int, float, bool, tuple) for value in fields.values()):
        with pytest.raises(ValueError, match=re.escape(message)):
            Scheme.from_dict(fields)


def test_other_types_of_names_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a qtype is a name, a dtype or a quanto\.QType, got int"):
        Scheme(8)  # type: ignore[arg-type]


def test_unknown_fields_are_named() -> None:
    message = "unknown scheme fields bits, wieghts; known: activations, algorithm, block, dynamic, "
    with pytest.raises(ValueError, match=message):
        Scheme.from_dict({"weights": "int8", "wieghts": "int8", "bits": 4})


def test_names_are_made_canonical() -> None:
    scheme = Scheme("qint4", "float8", scale_dtype=torch.bfloat16, block=[4, 32])  # type: ignore[arg-type]
    assert (scheme.weights, scheme.activations, scheme.scale_dtype) == ("int4", "float8_e4m3fn", "bfloat16")
    assert (scheme.block, scheme.granularity) == ((4, 32), "block")
    assert scheme == Scheme("int4", "fp8", scale_dtype="bfloat16", block=(4, 32), granularity="block")
    assert Scheme("int8", scale_dtype=torch.float8_e8m0fnu).scale_dtype == "e8m0"
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.weights = "int8"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "symmetric", "quantizer"),
    [
        ({"weights": "int8"}, True, "absmax"),
        ({"weights": "int8", "symmetric": False}, False, "minmax"),
        ({"weights": "int8", "algorithm": "minmax"}, False, "minmax"),
        ({"weights": "int4"}, False, "minmax"),
        ({"weights": "int2"}, False, "minmax"),
        ({"weights": "int4", "symmetric": True}, True, "absmax"),
        ({"weights": "int4", "algorithm": "absmax"}, True, "absmax"),
        ({"weights": "int4", "algorithm": "mine"}, False, "mine"),
        ({"weights": "nf4"}, True, "absmax"),
        ({"weights": "float8", "algorithm": "mine"}, True, "mine"),
        ({"weights": "nvfp4"}, True, "absmax"),
    ],
)
def test_defaults_of_symmetry_and_algorithm(fields: dict[str, Any], symmetric: bool, quantizer: str) -> None:
    scheme = Scheme(**fields)
    assert (scheme.is_symmetric, scheme.quantizer) == (symmetric, quantizer)


def test_scales_have_the_dtype_of_the_weight_unless_said() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert Scheme("int8").scales(dtype) == dtype
        assert Scheme("mxfp4").scales(dtype) == torch.float8_e8m0fnu
        assert Scheme("nvfp4").scales(dtype) == torch.float8_e4m3fn
        for name, scale in SCALES.items():
            assert Scheme("int4", scale_dtype=name).scales(dtype) == scale
    assert Scheme("int8").scales(torch.float64) == torch.float32


def test_presets() -> None:
    expected = {
        "w8a16": ("int8", None), "w8a8": ("int8", "int8"), "w8a8-static": ("int8", "int8"),
        "w8a8-float8": ("float8_e4m3fn", "float8_e4m3fn"), "w4a16": ("int4", None), "w4a16-symmetric": ("int4", None),
        "w4a8": ("int4", "int8"), "w3a16": ("int3", None), "w2a16": ("int2", None),
    }  # fmt: skip
    assert {name: (s.weights, s.activations) for name, s in presets.items()} == expected
    assert presets["w8a8-static"].dynamic is False
    assert presets["w4a16-symmetric"].is_symmetric
    for name, scheme in presets.items():
        assert Scheme.of(name) is scheme
        assert Scheme.from_dict(scheme.to_dict()) == scheme


def test_schemes_of_anything() -> None:
    scheme = Scheme("int4")
    assert Scheme.of(scheme) is scheme
    assert Scheme.of("int4") == Scheme.of("qint4") == Scheme.of({"weights": "int4"}) == scheme
    assert Scheme.of(quanto.qint4) == scheme  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown qtype 'w9a9'"):
        Scheme.of("w9a9")


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (Scheme("int8"), "int8"),
        (Scheme("int4", group_size=32), "int4 g32"),
        (Scheme("int8", "int8"), "int8 x int8 dynamic"),
        (Scheme("int8", "int8", dynamic=False, granularity="tensor"), "int8 tensor x int8 static"),
        (Scheme("int8", block=(4, 4), algorithm="absmax"), "int8 block absmax"),
    ],
)
def test_schemes_as_text(scheme: Scheme, text: str) -> None:
    assert str(scheme) == text


# -- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("lm_head", ["lm_head"], ["lm_head.weight", "x.lm_head", "LM_HEAD", ""]),
        ("*.mlp.*", ["model.0.mlp.up", "a.mlp."], ["mlp.up", "model.0.mlp"]),
        ("layers.[0-3].*", ["layers.0.x", "layers.3.x"], ["layers.4.x", "layers.10.x"]),
        ("*", ["", "a", "a.b"], []),
        (r"re:layers\.(0|11)\..*", ["layers.0.q", "layers.11."], ["layers.1.q", "xlayers.0.q", "layers.0"]),
        (re.compile("a+"), ["a", "aaa"], ["", "ab", "ba"]),
        (re.compile("A", re.IGNORECASE), ["a", "A"], ["b"]),
    ],
)
def test_patterns_match_whole_names(pattern: Any, matching: list[str], others: list[str]) -> None:
    rule = Rule(pattern, None)
    assert all(rule.matches(name, nn.Identity()) for name in matching)
    assert not any(rule.matches(name, nn.Identity()) for name in others)


def test_callables_see_name_and_module() -> None:
    layer = nn.Linear(2, 2)
    rule = Rule(lambda name, module: name == "a" and module is layer, Scheme("int8"))
    assert rule.matches("a", layer) is True
    assert rule.matches("b", layer) is False
    assert rule.matches("a", nn.Linear(2, 2)) is False
    assert Rule(lambda name, module: 0, None).matches("a", layer) is False  # type: ignore[arg-type, return-value]


def test_schemes_of_rules_are_made_of_names() -> None:
    assert Rule("*", "int4").scheme == Scheme("int4")  # type: ignore[arg-type]
    assert Rule("*", {"weights": "int8", "activations": "int8"}).scheme == presets["w8a8"]  # type: ignore[arg-type]
    assert Rule("*", None).scheme is None
    assert Rule("*", None, ["a", "b.T"]).parameters == ("a", "b.T")  # type: ignore[arg-type]


def test_wrong_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rule 're:\(' is not a regular expression: "):
        Rule("re:(", None)
    with pytest.raises(ValueError, match="unknown qtype 'int7'"):
        Rule("*", "int7")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parameters must be a sequence of names, got the string 'weight'"):
        Rule("*", None, "weight")  # type: ignore[arg-type]


def test_zero_points() -> None:
    assert not Scheme("int8", zero_point="int").is_symmetric
    assert Scheme("int8", zero_point="float").quantizer == "minmax"
    assert Scheme.from_dict(Scheme("int4", zero_point="float").to_dict()).zero_point == "float"
    assert str(Scheme("int4", zero_point="float")) == "int4 float zero points"
    for fields, message in (
        ({"weights": "int4", "zero_point": "whole"}, "zero_point must be 'int' or 'float', got 'whole'"),
        ({"weights": "nf4", "zero_point": "int"}, "nf4 has no zero points: zero_point='int' needs an integer qtype"),
        ({"weights": "int4", "zero_point": "int", "symmetric": True}, "zero_point='int' conflicts with symmetric=True"),
        ({"weights": "int4", "zero_point": "int", "algorithm": "absmax"}, "conflicts with algorithm='absmax'"),
    ):
        with pytest.raises(ValueError, match=message):
            Scheme(**fields)  # type: ignore[arg-type]


def test_a_block_of_one_number_is_named() -> None:
    with pytest.raises(ValueError, match="block must be two positive integers, got 5"):
        quanto.Scheme("int8", block=5)  # type: ignore[arg-type]
