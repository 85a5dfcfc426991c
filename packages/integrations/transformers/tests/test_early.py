# SPDX-License-Identifier: Apache-2.0
"""The pass that puts kernels between products: the same logits, where it should and nowhere else."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from tiny import build
from torch import Tensor
from transformers import StaticCache

from quanto_transformers import early, grouped
from quanto_transformers.early import EarlyPass

HALF = torch.bfloat16


def rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    f = x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return (f * (weight.float() + 1)).to(x.dtype) if plus_one else f.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    return x + residual, rms_norm(x + residual, weight, eps, plus_one)


def activate_and_multiply(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    return early._activation(kind, gate, up)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1).float() for t in (key, value))
    found = torch.nn.functional.scaled_dot_product_attention(query.float(), key, value, mask, scale=scale)
    return found.transpose(1, 2).to(query.dtype).contiguous()


def rotate_and_attend(
    query: Tensor, new_key: Tensor, new_value: Tensor, cos: Tensor, sin: Tensor, position: Tensor, key: Tensor,
    value: Tensor, mask: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    key.index_copy_(2, position.reshape(1), early._rotate(new_key, cos, sin))
    value.index_copy_(2, position.reshape(1), new_value)
    return attend(early._rotate(query, cos, sin), key, value, mask, scale)


def like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def attended(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], query.shape[3])


SCHEMAS = {
    "rms_norm": ("(Tensor x, Tensor weight, float eps, bool plus_one) -> Tensor", lambda x, *_: like(x)),
    "add_rms_norm": (
        "(Tensor x, Tensor residual, Tensor weight, float eps, bool plus_one) -> (Tensor, Tensor)",
        lambda x, *_: (like(x), like(x)),
    ),
    "activate_and_multiply": ("(Tensor gate, Tensor up, str kind) -> Tensor", lambda x, *_: like(x)),
    "attend": ("(Tensor query, Tensor key, Tensor value, Tensor? mask, float scale) -> Tensor", attended),
    "rotate_and_attend": (
        "(Tensor query, Tensor new_key, Tensor new_value, Tensor cos, Tensor sin, Tensor position, Tensor(a!) key, "
        "Tensor(b!) value, Tensor? mask, float scale) -> Tensor",
        attended,
    ),
}


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    found = {}
    for name, (schema, fake) in SCHEMAS.items():
        mutated = ("key", "value") if name == "rotate_and_attend" else ()
        operator = torch.library.custom_op(
            f"quanto_tests_early::{name}", globals()[name], mutates_args=mutated, schema=schema
        )
        operator.register_fake(fake)
        found[name] = getattr(torch.ops.quanto_tests_early, name).default
    return found


@pytest.fixture
def offered(operators: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Operators of a backend; a test may take some away."""
    left = dict(operators)
    monkeypatch.setattr(grouped.kernels, "function", lambda name, device: left.get(name))
    return left


def traced(call: Any, given: Any, **named: Any) -> tuple[Any, Counter[str], list[Any]]:
    """What a compiled call returns with the pass, without a compiler; what was replaced; the operators left."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    change = EarlyPass()
    left: list[Any] = []

    def compiler(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        change(gm.graph)
        gm.graph.lint()
        gm.recompile()
        left.extend(n.target for n in gm.graph.nodes if n.op == "call_function")
        return make_boxed_func(gm.forward)

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=compiler, inference_compiler=compiler, decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
    )  # fmt: skip
    with torch.no_grad():
        return torch.compile(call, backend=backend, dynamic=False)(*given, **named), change.replaced, left


def decoded(kind: str, dtype: torch.dtype, tokens: int = 1, **options: Any) -> tuple[Any, Any, Counter[str], list[Any]]:
    """Logits of tokens behind a prompt: eager, and with the pass."""
    model = build(kind, dtype, **options).eval()
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (2, 8 + tokens))

    def call(ids: Tensor, cache: Any) -> Tensor:
        logits: Tensor = model(input_ids=ids, past_key_values=cache).logits
        return logits

    with torch.no_grad(), grouped.grouped(model):
        found = []
        for way in (0, 1):
            cache = StaticCache(config=model.config, max_cache_len=32)
            call(ids[:, :8], cache)
            if way:
                got, replaced, left = traced(call, (ids[:, 8:], cache))
            else:
                found.append(call(ids[:, 8:], cache))
            found.append([layer.keys.clone() for layer in cache.layers])
            found.append([layer.values.clone() for layer in cache.layers])
    assert all(torch.isclose(a, b, rtol=0.05, atol=0.05).all() for a, b in zip(found[1], found[3], strict=True))
    assert all(torch.isclose(a, b, rtol=0.05, atol=0.05).all() for a, b in zip(found[2], found[4], strict=True))
    return found[0], got, replaced, left


#: of two layers: norms behind an addition, others, activations, attentions.
EXPECTED = {
    "llama": (4, 1, 2, 2),
    "qwen3": (4, 5, 2, 2),  # with norms of queries and keys
    "gemma3": (4, 9, 2, 2),  # with norms before an addition, too
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", EXPECTED)
def test_models(kind: str, dtype: torch.dtype, offered: dict[str, Any]) -> None:
    want, got, replaced, left = decoded(kind, dtype)
    assert (got - want).abs().max() <= 0.03 * want.abs().max()
    names = ("add_rms_norm", "rms_norm", "activate_and_multiply", "rotate_and_attend")
    assert tuple(replaced[name] for name in names) == EXPECTED[kind]
    for gone in (torch.ops.aten.rsqrt.default, torch.ops.aten.index_put.default, offered["attend"]):
        assert gone not in left


def test_nothing_is_replaced_where_a_backend_offers_nothing(offered: dict[str, Any]) -> None:
    attends = offered["attend"]
    offered.clear()
    offered["attend"] = attends
    want, got, replaced, left = decoded("llama", HALF)
    assert not replaced
    assert left.count(torch.ops.aten.rsqrt.default) == 5
    assert (got - want).abs().max() <= 0.03 * want.abs().max()


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, 1), (HALF, 12)])
def test_floats_and_many_tokens_are_left(dtype: torch.dtype, tokens: int, offered: dict[str, Any]) -> None:
    _, _, replaced, _ = decoded("llama", dtype, tokens)
    assert not replaced


def close(want: Any, got: Any) -> None:
    pairs = zip(*([t] if isinstance(t, Tensor) else t for t in (want, got)), strict=True)
    assert all(torch.isclose(a, b, rtol=0.02, atol=0.02).all() for a, b in pairs)


def change(call: Any, *given: Tensor) -> Counter[str]:
    """What is replaced; the results must stay, and what is done to the arguments."""
    copies = [t.clone() for t in given]
    want = call(*copies)
    got, replaced, _ = traced(call, given)
    close(want, got)
    close(copies, given)
    return replaced


def halves(*shape: int) -> Tensor:
    return torch.randn(*shape).to(HALF)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations(kind: str, offered: dict[str, Any]) -> None:
    torch.manual_seed(0)
    both = halves(2, 64)
    assert change(lambda t: early._activation(kind, *t.chunk(2, -1)), both) == {"activate_and_multiply": 1}
    assert change(lambda t: t[:, :1] * early._activation(kind, t, t), both) == {"activate_and_multiply": 1}


def test_what_is_like_it_is_left(offered: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, weight, f = halves(2, 64), halves(64), torch.nn.functional

    def norm(x: Tensor, power: float = 2, dim: int = -1, dtype: torch.dtype = HALF) -> Tensor:
        f = x.float()
        return weight * (f * torch.rsqrt(f.pow(power).mean(dim, keepdim=True) + 1e-6)).to(dtype)

    def and_a_part(x: Tensor) -> tuple[Tensor, Tensor]:
        f = x.float()
        square = f.pow(2)
        return weight * (f * torch.rsqrt(square.mean(-1, keepdim=True) + 1e-6)).to(HALF), square

    def and_its_activation(x: Tensor) -> tuple[Tensor, Tensor]:
        active = f.silu(x)
        return active * x, active

    assert change(norm, x) == {"rms_norm": 1}
    for other in (
        lambda x: norm(x.abs(), power=3),
        lambda x: norm(x, dim=0),
        lambda x: norm(x, dtype=torch.float16),
        and_a_part,
        and_its_activation,
        lambda x: f.silu(x) * x[:, :1],  # not of one shape
        lambda x: f.silu(x.float()) * x.float(),
        lambda x: f.relu(x) * x,
    ):
        assert not change(other, x)


def test_a_sum_that_is_used_again(offered: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, y, weight = halves(2, 64), halves(2, 64), halves(64)

    def block(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = x + y
        return total * 2, early._norm(total, weight), total

    assert change(block, x, y) == {"add_rms_norm": 1}
    assert change(lambda x, y: early._norm(x + y[:1], weight), x, y) == {"rms_norm": 1}
    assert change(lambda x, y: early._norm(torch.add(x, y, alpha=2), weight), x, y) == {"rms_norm": 1}


def test_a_cache_that_is_read_again_is_left(offered: dict[str, Any]) -> None:
    torch.manual_seed(0)
    query, new, cos, sin = halves(1, 4, 1, 16), halves(1, 2, 1, 16), halves(1, 1, 1, 16), halves(1, 1, 1, 16)
    attends, at = offered["attend"], torch.tensor([3])

    def block(more: int, key: Tensor, value: Tensor) -> Any:
        key.index_copy_(2, at, early._rotate(new, cos, sin))
        value.index_copy_(2, at, new)
        turned = early._rotate(query, cos, sin)
        read = attends(turned, key, value, None, 0.5)
        return read, (read, key.sum(), turned)[more]

    for more, replaced in ((0, {"rotate_and_attend": 1}), (1, {}), (2, {})):
        caches = [halves(1, 2, 8, 16) * 0 + n for n in (1, 2)]
        assert change(functools.partial(block, more), *caches) == replaced


def test_what_is_broadcast_is_left(offered: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attends, at = offered["attend"], torch.tensor([3])

    def block(query: Tensor, new: Tensor, cos: Tensor, sin: Tensor) -> Any:
        def call(key: Tensor, value: Tensor) -> Tensor:
            key[:, :, at] = early._rotate(new, cos, sin)
            value[:, :, at] = new
            found: Tensor = attends(early._rotate(query, cos, sin), key, value, None, 0.5)
            return found

        return call

    query, new, one, two = halves(2, 4, 1, 16), halves(2, 2, 1, 16), halves(1, 1, 1, 16), halves(2, 1, 1, 16)
    for given, replaced in (
        ((query, new, two, two), {"rotate_and_attend": 1}),
        ((query, new, one, one), {"rotate_and_attend": 1}),
        ((query, new[:, :1], two, two), {}),  # one head for all
        ((query, new[:1], one, one), {}),  # one text for all
        ((query[:1], new, two, two), {}),  # a query that becomes as many texts by its angles
        ((query, new, two, one), {}),
    ):
        assert change(block(*given), halves(2, 2, 8, 16), halves(2, 2, 8, 16)) == replaced


def test_a_compiler_that_keeps_graphs_knows_the_pass(offered: dict[str, Any]) -> None:
    known = EarlyPass().uuid()
    assert EarlyPass() == EarlyPass()
    assert EarlyPass().uuid() == known is not None
    del offered["rms_norm"]
    assert EarlyPass().uuid() != known
