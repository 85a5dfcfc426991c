# SPDX-License-Identifier: Apache-2.0
"""A quantized tensor says what it is, and keeps its values through copies, files, casts and moves."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import quanto
from quanto import QTensor
from quanto.tensor.qtensor import same

QTYPES = sorted(quanto.qtypes)
SCALES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES |= {"e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _samples(name: str) -> list[QTensor]:
    """One format settled, per tensor, permuted, transposed, viewed and empty."""
    q = quanto.quantize_tensor(_randn(4, 6, 96), name)
    whole = quanto.quantize_tensor(_randn(5, 7), name, block_size=())
    return [q, whole, q.permute(1, 0, 2), q.mT, q.view(-1), q[:0], quanto.quantize_tensor(torch.tensor(2.0), name)]


def _load(q: QTensor, weights_only: bool) -> QTensor:
    buffer = io.BytesIO()
    torch.save(q, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=weights_only)


COPIES: dict[str, Callable[[QTensor], Any]] = {
    "clone": torch.Tensor.clone,
    "detach": torch.Tensor.detach,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda q: pickle.loads(pickle.dumps(q)),
    "pickle, old protocol": lambda q: pickle.loads(pickle.dumps(q, protocol=2)),
    "torch.save": lambda q: _load(q, True),
    "torch.save, any pickle": lambda q: _load(q, False),
    "to itself": lambda q: q.to(q.dtype, copy=True),
    "cpu": torch.Tensor.cpu,
    "parameter": lambda q: nn.Parameter(q, requires_grad=False),
    "flatten": lambda q: QTensor.__tensor_unflatten__(
        {n: getattr(q, n) for n in q.__tensor_flatten__()[0]}, q.__tensor_flatten__()[1], q.shape, q.stride()
    ),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", QTYPES)
def test_copies_are_the_same_tensor(name: str, way: str) -> None:
    for q in _samples(name):
        twin = COPIES[way](q)
        assert isinstance(twin, QTensor)
        assert (twin.qtype, twin.block_size, twin.columns) == (q.qtype, q.block_size, q.columns)
        assert (twin.shape, twin.dtype, twin.transposed) == (q.shape, q.dtype, q.transposed)
        for part in ("codes", "scale", "zero_point", "global_scale"):
            a, b = getattr(q, part), getattr(twin, part)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and same(a, b))
        assert torch.equal(twin.dequantize(), q.dequantize())


@pytest.mark.parametrize("way", ["clone", "deepcopy", "pickle", "torch.save", "to itself"])
def test_copies_own_their_memory(way: str) -> None:
    q = quanto.quantize_tensor(_randn(4, 96), "int4")
    twin = COPIES[way](q)
    assert twin.codes.data_ptr() != q.codes.data_ptr()
    assert twin.scale.data_ptr() != q.scale.data_ptr()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (0, {"codes": torch.zeros(4, 40, dtype=torch.uint8)}, "codes must be torch.uint8"),
        (0, {"codes": torch.zeros(4, 48)}, "codes must be torch.uint8"),
        (0, {"scale": torch.ones(3, 1)}, "scale must have shape"),
        (2, (4, 97), "cannot have codes"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(part: int, value: Any, message: str) -> None:
    rebuild, arguments = quanto.quantize_tensor(_randn(4, 96), "int4").__reduce_ex__(2)
    given = list(arguments)
    given[part] = {**given[part], **value} if part == 0 else value
    with pytest.raises(ValueError, match=message):
        rebuild(*given)


def test_deepcopy_keeps_shared_objects_and_gradients() -> None:
    p = nn.Parameter(quanto.quantize_tensor(_randn(4, 96), "int8"))
    first, second = copy.deepcopy([p, p])
    assert first is second
    assert first.requires_grad
    assert not copy.deepcopy(p.detach()).requires_grad


@pytest.mark.parametrize("name", QTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_change_of_dtype_is_of_the_values_alone(name: str, dtype: torch.dtype) -> None:
    for q in _samples(name):
        cast = q.to(dtype)
        assert isinstance(cast, QTensor)
        assert cast.dtype == dtype == cast.dequantize().dtype
        assert torch.equal(cast.codes, q.codes)
        assert cast.scale.dtype == q.scale.dtype
        assert same(cast.scale, q.scale)
        assert torch.equal(cast.dequantize(torch.float64), q.dequantize(torch.float64))


def test_shorthands_for_dtypes() -> None:
    q = quanto.quantize_tensor(_randn(4, 96), "int4")
    casts = (q.half(), q.bfloat16(), q.double(), q.type(torch.float16), q.to(torch.ones(1).bfloat16()))
    assert [c.dtype for c in casts] == [torch.float16, torch.bfloat16, torch.float64, torch.float16, torch.bfloat16]
    assert all(isinstance(c, QTensor) for c in casts)
    assert q.to(torch.float32) is q
    assert q.to("meta").device.type == "meta"
    assert q.to("meta").codes.is_meta


@given(data=st.data())
def test_values_have_one_rounding(samples: Any, data: st.DataObject) -> None:
    q = data.draw(samples)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # float32 arithmetic: two roundings of half an ulp beside that of the dtype
        want = q.dequantize(torch.float64)
        rtol = 2.0**-23 + torch.finfo(dtype).eps / 2
        torch.testing.assert_close(q.dequantize(dtype).double(), want, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("name", QTYPES)
def test_sharing_memory(name: str) -> None:
    q = quanto.quantize_tensor(_randn(4, 96), name)
    before = q.dequantize()
    assert not q.is_shared()
    assert q.share_memory_() is q
    assert q.is_shared()
    for part in (q.codes, q.scale, q.zero_point, q.global_scale):
        assert part is None or part.is_shared()
    assert torch.equal(q.dequantize(), before)


def test_values_outside_of_torch() -> None:
    pytest.importorskip("numpy")
    q = quanto.quantize_tensor(_randn(3, 8), "int4")
    assert q.tolist() == q.dequantize().tolist()
    assert q.numpy().tolist() == q.tolist()
    assert q[1, 2].item() == q.tolist()[1][2]
    with pytest.raises(TypeError):  # as of any bfloat16 tensor
        q.bfloat16().numpy()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("int8", {}, 16 * 96 + 16 * 4),
        ("int8", {"granularity": "tensor"}, 16 * 96 + 4),
        ("int8", {"symmetric": False}, 16 * 96 + 16 * 5),
        ("int4", {"group_size": 32}, 16 * 48 + 16 * 3 * 5),
        ("int4", {"group_size": 32, "symmetric": True, "scale_dtype": "bfloat16"}, 16 * 48 + 16 * 3 * 2),
        ("int3", {"symmetric": True}, 16 * 36 + 16 * 4),
        ("int2", {"symmetric": True}, 16 * 24 + 16 * 4),
        ("float8", {}, 16 * 96 + 16 * 4),
        ("mxfp4", {}, 16 * 48 + 16 * 3),
        ("nvfp4", {}, 16 * 48 + 16 * 6 + 4),
    ],
)
def test_bytes_are_those_held(name: str, options: dict[str, Any], expected: int) -> None:
    q = quanto.quantize_tensor(_randn(16, 96), name, **options)
    assert q.nbytes == expected
    assert q.element_size() == 1
    assert q.half().nbytes == expected
    assert q[:4].nbytes == expected // 4 or q.scale.ndim == 0 or q.global_scale is not None


@pytest.mark.parametrize("scale_dtype", SCALES)
def test_scale_dtypes_survive(scale_dtype: str) -> None:
    q = quanto.quantize_tensor(_randn(4, 96), "int8", scale_dtype=scale_dtype)
    for way in COPIES.values():
        assert way(q).scale.dtype == SCALES[scale_dtype]


def test_shapes_and_strides() -> None:
    wide, packed = (quanto.quantize_tensor(_randn(4, 6, 96), name) for name in ("int8", "int4"))
    assert wide.stride() == packed.stride() == (576, 96, 1)
    assert wide.mT.stride() == packed.mT.stride() == (576, 1, 96)
    assert wide.settled
    assert not packed.mT.settled
    assert packed.inner_shape == packed.mT.inner_shape == (4, 6, 96)
    assert packed.codes.shape == (4, 6, 48)
    assert packed.mT.shape == (4, 96, 6)
    assert packed.mT.is_contiguous() is False
    odd = quanto.quantize_tensor(_randn(3, 5), "int4")
    assert (odd.shape, odd.codes.shape, odd.columns) == ((3, 5), (3, 3), 5)


def test_packed_codes_do_not_tell_their_columns() -> None:
    codes, scale = torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2, 1)
    with pytest.raises(ValueError, match="columns must be given for int4: packed codes do not tell it"):
        QTensor(codes, scale, qtype="int4", block_size=(1, 5))
    q = QTensor(codes, scale, qtype="int4", block_size=(1, 5), columns=5)
    assert q.shape == (2, 5)
    assert torch.equal(q.dequantize(), torch.full((2, 5), -8.0))


def test_a_tensor_made_of_parts() -> None:
    codes = torch.tensor([[1, -2, 127], [0, 5, -128]], dtype=torch.int8)
    zero = torch.tensor([[1], [-3]], dtype=torch.int8)
    q = QTensor(codes, torch.tensor([[0.5], [2.0]]), zero, qtype=quanto.qint8, block_size=(1, 3))
    assert q.tolist() == [[0.0, -1.5, 63.0], [6.0, 16.0, -250.0]]
    assert q.weight().key == "int8;1x3;2x3;float32;int;canonical"
    assert repr(q) == "QTensor(int8, shape=(2, 3), dtype=torch.float32, block_size=(1, 3))"
    assert str(q.to("meta").half()) == (
        "QTensor(int8, shape=(2, 3), dtype=torch.float16, block_size=(1, 3), device='meta')"
    )


def test_numbers_are_formatted_as_numbers() -> None:
    q = quanto.quantize_tensor(torch.tensor([0.5, -1.27]), "int8", symmetric=True, granularity="tensor")
    assert isinstance(q[1], QTensor)
    assert f"{q[1]:.2f}" == "-1.27"
    assert f"{q[1]}" == f"{q[1].dequantize()}"
    assert f"{q}" == repr(q)


def test_equality_of_parts_takes_one_byte_floats() -> None:
    a = torch.tensor([1.0, 2.0]).to(torch.float8_e8m0fnu)
    assert same(a, a.clone())
    assert not same(a, torch.tensor([1.0, 4.0]).to(torch.float8_e8m0fnu))
    assert not same(a, a.reshape(1, 2))
    assert not same(a, a.float() + 1)
