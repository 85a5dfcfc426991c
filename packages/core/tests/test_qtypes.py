# SPDX-License-Identifier: Apache-2.0
"""What each code means, against tables written from the definitions of the formats in plain Python."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Iterator
from statistics import NormalDist

import pytest
import torch

import quanto
from quanto import reference
from quanto.qtypes import QType, get_qtype, qtypes, register_qtype


def _float8(code: int, exponent_bits: int, bias: int, kind: str) -> float:
    """One float8 code by its bit fields: sign, exponent, mantissa.

    `kind`: "ieee" keeps infinities and NaN in the last exponent, "fn" only the very last code as NaN, "fnuz" has no
    negative zero and takes its code for NaN.
    """
    mantissa_bits = 7 - exponent_bits
    sign = -1.0 if code >> 7 else 1.0
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = code & ((1 << mantissa_bits) - 1)
    last = exponent == (1 << exponent_bits) - 1
    if kind == "fnuz" and code == 0x80:
        return math.nan
    if kind == "fn" and last and mantissa == (1 << mantissa_bits) - 1:
        return math.nan
    if kind == "ieee" and last:
        return math.nan if mantissa else sign * math.inf
    fraction = mantissa / (1 << mantissa_bits)
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


def _e2m1(code: int) -> float:
    """Sign, two bits of exponent with bias 1, one of mantissa; no infinities."""
    sign, exponent, mantissa = (-1.0 if code & 8 else 1.0), (code >> 1) & 3, code & 1
    return sign * (mantissa * 0.5 if exponent == 0 else (1 + mantissa * 0.5) * 2.0 ** (exponent - 1))


FLOAT8 = {
    "float8_e4m3fn": (4, 7, "fn"),
    "float8_e4m3fnuz": (4, 8, "fnuz"),
    "float8_e5m2": (5, 15, "ieee"),
    "float8_e5m2fnuz": (5, 16, "fnuz"),
    "mxfp8": (4, 7, "fn"),
}
INTEGERS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


def _expected(name: str) -> list[float]:
    if name in FLOAT8:
        return [_float8(code, *FLOAT8[name]) for code in range(256)]
    if name in INTEGERS:
        return [code - 2.0 ** (INTEGERS[name] - 1) for code in range(2 ** INTEGERS[name])]
    if name == "nf4":
        return _nf4()
    return [_e2m1(code) for code in range(16)]


def _nf4() -> list[float]:
    """QLoRA, section 3: quantiles of the normal distribution, 8 below and 9 above zero that share an exact zero."""
    # the outermost quantile is the mean of those that 15 and 16 levels would have
    offset = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(count: int) -> Iterator[float]:
        return (NormalDist().inv_cdf(offset + (0.5 - offset) * i / (count - 1)) for i in range(count - 1))

    values = sorted([*quantiles(9), 0.0, *(-v for v in quantiles(8))])
    return [v / values[-1] for v in values]


def _codes(q: QType) -> torch.Tensor:
    if q.storage == torch.int8:
        return torch.arange(-128, 128, dtype=torch.int8)
    return torch.arange(2**q.bits, dtype=torch.int32).to(torch.uint8)


def _same_bits(a: list[float], b: list[float]) -> bool:
    """Equality that tells -0.0 from 0.0 and takes NaN for NaN."""
    return len(a) == len(b) and all(
        (math.isnan(x) and math.isnan(y)) or (x == y and math.copysign(1, x) == math.copysign(1, y))
        for x, y in zip(a, b, strict=True)
    )


def test_every_qtype_has_a_row_here() -> None:
    assert {*FLOAT8, *INTEGERS, "nf4", "fp4", "mxfp4", "nvfp4"} <= set(qtypes)


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "fp4", "mxfp4", "nvfp4"])
def test_codes_decode_to_the_exact_values(name: str) -> None:
    q = get_qtype(name)
    assert _same_bits(reference.decode(_codes(q), q).tolist(), _expected(name))


def test_nf4_is_the_normal_distribution() -> None:
    # The published table was computed in single precision: 2e-7 covers its rounding.
    values = reference.decode(_codes(quanto.qnf4), quanto.qnf4).tolist()
    assert values == pytest.approx(_nf4(), abs=2e-7)
    assert (values[0], values[7], values[15]) == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "nf4", "fp4", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encoding_a_value_gives_its_code_back(name: str, dtype: torch.dtype) -> None:
    q = get_qtype(name)
    codes = _codes(q)
    values = reference.decode(codes, q, dtype)
    finite = values.isfinite() & ~((values == 0) & values.signbit())
    assert torch.equal(reference.encode(values, q)[finite], codes[finite])


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "nf4", "fp4"])
def test_encoding_takes_the_nearest_code(name: str) -> None:
    q = get_qtype(name)
    table = reference.decode(_codes(q), q).double()
    points = table[table.isfinite()]
    # float32: torch casts float64 to float8 by way of it
    x = (torch.linspace(-1.2, 1.2, 4001) * points.abs().max().float()).double()
    best = (x[:, None] - points).abs().amin(1)
    found = (x - reference.decode(reference.encode(x.float(), q), q).double()).abs()
    assert torch.equal(found, best)


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "fp4"])
def test_ties_go_to_the_even_code(name: str) -> None:
    q = get_qtype(name)
    table = reference.decode(_codes(q), q)
    positive = table[table.isfinite() & (table >= 0) & ~table.signbit()].sort().values
    middles = (positive[1:] + positive[:-1]) / 2
    codes = reference.encode(middles, q)
    assert (codes % 2 == 0).all()
    gaps = (positive[1:] - positive[:-1]) / 2
    assert torch.equal((reference.decode(codes, q) - middles).abs(), gaps)


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "nf4", "fp4"])
def test_encoding_saturates(name: str) -> None:
    q = get_qtype(name)
    table = [v for v in _expected(name) if math.isfinite(v)]
    low, high = reference.decode(reference.encode(torch.tensor([-1e30, 1e30]), q), q).tolist()
    assert (low, high) == (pytest.approx(min(table)), pytest.approx(max(table)))
    inf = reference.decode(reference.encode(torch.tensor([-math.inf, math.inf]), q), q).tolist()
    assert inf == [low, high]


@pytest.mark.parametrize("name", [*FLOAT8, *INTEGERS, "nf4", "fp4"])
def test_nan_is_nan_in_float8_and_zero_elsewhere(name: str) -> None:
    q = get_qtype(name)
    (value,) = reference.decode(reference.encode(torch.tensor([math.nan]), q), q).tolist()
    assert math.isnan(value) if q.is_float8 else value == 0


@pytest.mark.parametrize("name", INTEGERS)
def test_narrow_integers_are_offset_binary(name: str) -> None:
    q, bits = get_qtype(name), INTEGERS[name]
    assert (q.qmin, q.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = torch.arange(q.qmin, q.qmax + 1)
    offset = 0 if bits == 8 else 2 ** (bits - 1)
    assert reference.encode(values.float(), q).tolist() == [v + offset for v in values.tolist()]
    assert q.storage == (torch.int8 if bits == 8 else torch.uint8)
    assert q.amax == (2**bits - 1) / 2


def test_power_of_two_scales_are_exponents() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e8m0fnu)
    values = codes.to(torch.float64).tolist()
    assert values[:255] == [2.0 ** (code - 127) for code in range(255)]
    assert math.isnan(values[255])


def test_formats_fix_what_their_specifications_fix() -> None:
    assert (quanto.qmxfp4.block, quanto.qmxfp4.scale_dtype) == (32, torch.float8_e8m0fnu)
    assert (quanto.qmxfp8.block, quanto.qmxfp8.scale_dtype) == (32, torch.float8_e8m0fnu)
    assert (quanto.qnvfp4.block, quanto.qnvfp4.scale_dtype) == (16, torch.float8_e4m3fn)
    assert [q.name for q in qtypes.values() if q.two_level] == ["nvfp4"]
    assert {q.amax for q in (quanto.qfp4, quanto.qmxfp4, quanto.qnvfp4)} == {6.0}
    amax = {name: max(v for v in _expected(name) if math.isfinite(v)) for name in FLOAT8}
    assert {name: get_qtype(name).amax for name in FLOAT8} == amax


@pytest.mark.parametrize("name", sorted(qtypes))
def test_names_copies_and_pickles_are_the_same_object(name: str) -> None:
    q = qtypes[name]
    assert get_qtype(name) is get_qtype("q" + name) is get_qtype(q) is q
    assert getattr(quanto, "q" + name) is q
    assert pickle.loads(pickle.dumps(q)) is q
    assert copy.deepcopy(q) is q
    assert (str(q), repr(q)) == (name, f"quanto.q{name}")


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("float8", "float8_e4m3fn"),
        ("qfloat8", "float8_e4m3fn"),
        ("fp8", "float8_e4m3fn"),
        ("fp4_e2m1", "fp4"),
        ("mxfp8_e4m3", "mxfp8"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert get_qtype(alias) is qtypes[name]


@pytest.mark.parametrize("name", ["", "q", "int5", "INT8", "qqint4", "float8_e3m4", " int4"])
def test_unknown_names_are_refused_with_those_known(name: str) -> None:
    with pytest.raises(ValueError, match="unknown qtype") as error:
        get_qtype(name)
    assert "float8_e4m3fn, float8_e4m3fnuz" in str(error.value)


@pytest.mark.parametrize("name", [None, 4, b"int4"])
def test_other_types_are_refused(name: object) -> None:
    with pytest.raises(TypeError, match=r"a qtype is a name, a dtype or a quanto\.QType"):
        get_qtype(name)  # type: ignore[arg-type]


def test_a_pickle_of_an_unregistered_qtype_keeps_its_fields() -> None:
    mine = QType("ternary", 2, table=(0.0, 1.0, -1.0, 0.0))
    again = pickle.loads(pickle.dumps(mine))
    assert again == mine
    assert again is not mine


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    # `quanto.qtypes` as an attribute is the table, so the module is found by name
    monkeypatch.setattr(sys.modules["quanto.qtypes"], "qtypes", dict(qtypes))
    mine = QType("ternary", 2, table=(0.0, 1.0, -1.0, 0.0))
    register_qtype(mine)
    register_qtype(mine)  # the same meaning twice is no conflict
    assert get_qtype("ternary") is mine
    assert get_qtype("qternary") is mine
    for name in ("int4", "float8"):
        with pytest.raises(ValueError, match="registered already"):
            register_qtype(QType(name, 2, torch.int8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 0, "element": torch.int8}, "bits must be 1 to 8, got 0"),
        ({"bits": 9, "element": torch.int8}, "bits must be 1 to 8, got 9"),
        ({"bits": 4}, "give either element or table"),
        ({"bits": 1, "element": torch.int8, "table": (0.0, 1.0)}, "give either element or table"),
        ({"bits": 2, "table": (0.0, 1.0)}, "2 bits need 4 table values"),
        ({"bits": 4, "element": torch.float8_e5m2}, "a float8 element has 8 bits"),
    ],
)
def test_wrong_definitions_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QType("wrong", **fields)  # type: ignore[arg-type]


def test_dtypes_of_torch_name_qtypes() -> None:
    assert get_qtype(torch.int8) is quanto.qint8
    assert get_qtype(torch.float8_e5m2) is quanto.qfloat8_e5m2
    with pytest.raises(ValueError, match="unknown qtype 'int16'"):
        get_qtype(torch.int16)
