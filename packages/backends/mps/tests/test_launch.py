# SPDX-License-Identifier: Apache-2.0
"""The host's side against the shaders: structs field by field, names of kernels, and nothing that Metal 3.0 lacks."""

from __future__ import annotations

import re
import sys
from importlib.resources import files

import pytest
from metal_shim.signature import read

from quanto_backend_mps.library import FAMILIES, source
from quanto_backend_mps.ops.dense import Dense
from quanto_backend_mps.ops.encode import Bits, Encode
from quanto_backend_mps.ops.linear import Linear

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is made for Linux and g++")
STRUCTS = {"gemv": Linear, "gemm": Linear, "dense": Dense, "encode": Encode, "bits": Bits}

# Of Metal 3.1 and later: bfloat, lambdas, if constexpr; and what Metal never had.
LACKING = {
    "bfloat": r"\bbfloat",
    "lambdas": r"\[[&=]?\]\s*\(",
    "if constexpr": r"if\s+constexpr",
    "doubles": r"\bdouble\b",
    "derived classes": r"struct \w+\s*:",
    "new": r"\bnew\b",
    "goto": r"\bgoto\b",
    "virtual functions": r"\bvirtual\b",
    "logging": r"\bos_log\b",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_structs_have_the_fields_that_the_host_fills(family: str) -> None:
    host = STRUCTS[family]
    assert read(source(family))[1][host.__name__] == host._fields


def test_every_shader_file_is_a_family() -> None:
    found = {f.name.removesuffix(".metal") for f in (files("quanto_backend_mps") / "shaders").iterdir()}
    assert found == {name for parts in FAMILIES.values() for name in parts}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", sorted(LACKING))
def test_shaders_use_nothing_beyond_metal_3_0(family: str, what: str) -> None:
    code = re.sub(r"//[^\n]*", "", source(family))
    assert not re.search(LACKING[what], code)


@pytest.mark.parametrize("family", FAMILIES)
def test_ternaries_and_tables_are_float(family: str) -> None:
    """Metal has no double: a literal without f becomes float with a warning, and C++ would compute in double."""
    code = re.sub(r"//[^\n]*", "", source(family))
    assert not re.findall(r"(?<![\w.])\d+\.\d*(?:e-?\d+)?(?![\w.])", code)
