# SPDX-License-Identifier: Apache-2.0
"""Attention of one token against float64: groups, masks of every kind, strides, lengths for one block and many."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quanto.kernels import kernels
from quanto_backend_cuda.ops import attend as module
from quanto_backend_cuda.ops.attend import attend, rotate_and_attend
from quanto_backend_cuda.specs import specs

CASES = [
    (1, 8, 2, 144, 128, "half"),
    (2, 4, 4, 300, 64, "added"),
    (3, 6, 2, 700, 80, None),
    (2, 6, 2, 530, 32, "heads"),
    (1, 40, 2, 257, 16, "half"),
    (1, 2, 1, 1, 16, None),
]


def wanted(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(group, 1) for t in (key, value))
    scores = query.double() @ key.mT * scale
    if mask is not None:
        known = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if known else scores + mask.double()
    return (scores.softmax(-1) @ value).transpose(1, 2)


def made(texts: int, length: int, heads: int, kind: str | None, dtype: torch.dtype, device: str) -> Any:
    if kind == "half":  # what a static cache has
        return (torch.arange(length, device=device) <= length // 2).expand(texts, 1, 1, length)
    seen = torch.rand(texts, heads if kind == "heads" else 1, 1, length, device=device) < 0.5
    seen[..., 0] = True
    if kind == "added":
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))
    return seen if kind == "heads" else None


LONG = pytest.param(2, 32, 8, 9000, 128, "half", marks=pytest.mark.gpu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("texts", "heads", "keys", "length", "size", "kind"), [*CASES, LONG])
def test_attend(
    texts: int, heads: int, keys: int, length: int, size: int, kind: str | None, dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    query = torch.randn(texts, 1, heads, size, dtype=dtype, device=device).transpose(1, 2)
    key, value = (torch.randn(texts, length, keys, size, dtype=dtype, device=device).transpose(1, 2) for _ in range(2))
    mask = made(texts, length, heads, kind, dtype, device)
    want = wanted(query, key, value, mask, 0.3)
    if kind == "half":  # what nobody sees is not read
        key[:, :, length // 2 + 1 :] = value[:, :, length // 2 + 1 :] = float("nan")
    for _ in range(2):  # counters are left as they were found
        got = attend(query, key, value, mask, 0.3)
        assert got.shape == (texts, 1, heads, size)
        assert got.dtype == dtype
        assert torch.isclose(got.double(), want, rtol=2e-2, atol=1e-2).all()  # shares are rounded to halves


def test_a_query_that_sees_nothing_is_nan(device: str) -> None:
    query, key = (torch.randn(1, 2, n, 16, dtype=torch.float16, device=device) for n in (1, 5))
    mask = torch.tensor([[True] * 5, [False] * 5], device=device).view(1, 2, 1, 5)
    got = attend(query, key, key, mask, 1.0)
    assert got[0, 0, 0].isfinite().all()
    assert got[0, 0, 1].isnan().all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", {"query": torch.zeros(1, 4, 2, 16).half()}),
        ("query", {"query": torch.zeros(1, 4, 1, 16)}),
        ("key", {"key": torch.zeros(1, 2, 5, 16)}),
        ("key", {"key": torch.zeros(1, 3, 5, 16).half(), "value": torch.zeros(1, 3, 5, 16).half()}),
        ("value", {"value": torch.zeros(1, 2, 6, 16).half()}),
        ("mask", {"mask": torch.ones(1, 1, 1, 6, dtype=torch.bool)}),
        ("mask", {"mask": torch.ones(1, 1, 1, 5, dtype=torch.int64)}),
    ],
)
def test_what_does_not_fit_is_named(name: str, change: dict[str, torch.Tensor]) -> None:
    given: dict[str, Any] = {"query": torch.zeros(1, 4, 1, 16).half(), "key": torch.zeros(1, 2, 5, 16).half()}
    given |= {"value": given["key"], "mask": None, **change}
    with pytest.raises(ValueError, match=f"^{name} "):
        attend(**given, scale=1.0)


def test_is_found_and_traces(device: str) -> None:
    specs()
    found = kernels.function("attend", "cuda")
    assert found is torch.ops.quanto_cuda.attend.default
    query, key = (torch.randn(2, *shape, 16, dtype=torch.float16, device=device) for shape in ((4, 1), (2, 5)))
    torch.library.opcheck(found, (query, key, key, None, 0.5))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.double().chunk(2, -1)
    return (x.double() * cos.double() + torch.cat((-b, a), -1) * sin.double()).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("texts", "heads", "keys", "length", "size", "kind"), [*CASES, LONG])
@pytest.mark.parametrize("at", [0, 0.5, 1])
def test_rotate_and_attend(
    texts: int, heads: int, keys: int, length: int, size: int, kind: str | None, dtype: torch.dtype, at: float,
    device: str,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    joined = torch.randn(texts, 1, heads + 2 * keys, size, device=device).to(dtype)
    query, new_key, new_value = (t.transpose(1, 2) for t in joined.split([heads, keys, keys], 2))
    cos, sin = torch.rand(2, texts, 1, 1, size, device=device).to(dtype)
    key, value = torch.randn(2, texts, keys, length, size, device=device).to(dtype)
    mask = made(texts, length, heads, kind, dtype, device)
    position = torch.tensor([int(at * (length - 1))], device=device)
    want_key, want_value = key.clone(), value.clone()
    want_key[:, :, position] = rotated(new_key, cos, sin)
    want_value[:, :, position] = new_value
    want = wanted(rotated(query, cos, sin), want_key, want_value, mask, 0.3)
    key[:, :, position] = value[:, :, position] = float("nan")  # what was there is not read
    for _ in range(2):
        got = rotate_and_attend(query, new_key, new_value, cos, sin, position, key, value, mask, 0.3)
        assert torch.isclose(got.double(), want, rtol=2e-2, atol=1e-2).all()
        assert torch.equal(value, want_value)
        assert torch.isclose(key, want_key, rtol=torch.finfo(dtype).eps, atol=1e-3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [case for case in CASES if case[3] <= 256])
def test_queries_of_a_group_share_a_block_where_there_are_many(
    case: Any, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_short", lambda *_: False)
    test_attend(*case, dtype, device)
    test_rotate_and_attend(*case, dtype, 0.5, device)


def test_a_query_has_a_block_alone_where_features_are_pairs(device: str) -> None:
    torch.manual_seed(0)
    key = torch.randn(1, 2, 40, 18, dtype=torch.float16, device=device)
    assert module._short(key, key, 4)
    for t in (key[..., :15], key[..., 1:17], torch.randn(1, 2, 40, 17, device=device).half()[..., :16]):
        assert not module._short(key, t, 4)
        query = torch.randn(1, 4, 1, t.shape[-1], dtype=torch.float16, device=device)
        got = attend(query, t, t, None, 0.3).double()
        assert torch.isclose(got, wanted(query, t, t, None, 0.3), rtol=2e-2, atol=1e-2).all()


def test_nothing_is_written_beside_the_cache(device: str) -> None:
    query, new = (torch.randn(1, n, 1, 16, dtype=torch.float16, device=device) for n in (2, 1))
    one = torch.ones(1, 1, 1, 16, dtype=torch.float16, device=device)
    around = torch.zeros(1, 1, 7, 16, dtype=torch.float16, device=device)
    cache = around[:, :, 1:6]
    for position in (-1, 5):
        rotate_and_attend(query, new, new, one, one, torch.tensor(position, device=device), cache, cache, None, 1.0)
        assert not around.any()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", {"query": torch.zeros(1, 4, 1, 15).half(), "key": torch.zeros(1, 2, 5, 15).half()}),
        ("new_key", {"new_key": torch.zeros(1, 4, 1, 16).half()}),
        ("new_value", {"new_value": torch.zeros(1, 2, 1, 16)}),
        ("cos", {"cos": torch.zeros(1, 1, 16).half()}),
        ("sin", {"sin": torch.zeros(1, 1, 1, 8).half()}),
        ("position", {"position": torch.zeros(1, dtype=torch.int32)}),
        ("position", {"position": torch.zeros(2, dtype=torch.int64)}),
        ("key", {"key": torch.zeros(1, 2, 16, 5).half().mT}),
    ],
)
def test_what_does_not_fit_to_rotate_is_named(name: str, change: dict[str, torch.Tensor]) -> None:
    given: dict[str, Any] = {"query": torch.zeros(1, 4, 1, 16).half(), "key": torch.zeros(1, 2, 5, 16).half()}
    given |= change
    new, one = torch.zeros(1, 2, 1, 16).half(), torch.zeros(1, 1, 1, 16).half()
    given = {"new_key": new, "new_value": new, "cos": one, "sin": one, "value": given["key"], **given}
    given = {"position": torch.zeros(1, dtype=torch.int64), "mask": None, **given}
    with pytest.raises(ValueError, match=f"^{name} "):
        rotate_and_attend(**given, scale=1.0)


def test_rotating_is_found_and_traces(device: str) -> None:
    specs()
    found = kernels.function("rotate_and_attend", "cuda")
    assert found is torch.ops.quanto_cuda.rotate_and_attend.default
    query, key, new, one = (
        torch.randn(2, *shape, 16, dtype=torch.float16, device=device) for shape in ((4, 1), (2, 5), (2, 1), (1, 1))
    )
    position = torch.tensor(3, device=device)
    torch.library.opcheck(found, (query, new, new, one, one, position, key, key.clone(), None, 0.5))
