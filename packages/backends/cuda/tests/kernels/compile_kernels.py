# SPDX-License-Identifier: Apache-2.0
"""Compiles what the operators would launch, for a GPU that need not be there: `compile_kernels.py cuda 90 [few]`.

The interpreter accepts Python that the compiler does not. This runs every operator on CPU tensors, and gives each
launch to Triton's compiler with the signature that it would have. Prints a line per launch that fails, and the count.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import quanto
from quanto_backend_cuda import runtime
from quanto_backend_cuda.layout import TILED
from quanto_backend_cuda.ops import attend, cublas, dense, encode, linear, norm, product, scaled, specialized, stream
from quanto_backend_cuda.ops.trial import Trial
from quanto_backend_cuda.ops.weights import facts
from quanto_backend_cuda.tables import Tile

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}
OPTIONS = ("num_warps", "num_stages", "launch_pdl")
ARCH: Any = int(sys.argv[2]) if sys.argv[2].isdecimal() else sys.argv[2]
TARGET = GPUTarget(sys.argv[1], ARCH, 64 if sys.argv[1] == "hip" else 32)
NVIDIA = TARGET.backend == "cuda"
FEW = "few" in sys.argv

failures: list[str] = []
done: set[str] = set()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, traced: bool = False, **options: Any) -> None:
    """Compiles instead of launching."""
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
    _compile(kernel, given, options, frozenset())
    if any(given[n] == 1 for n in ("M", "splits") if n in given):  # Inductor makes constants of them
        _compile(kernel, given, options, frozenset({"M", "splits"}))


def source(kernel: Any) -> Any:
    """The language of a kernel."""
    if getattr(kernel, "is_gluon", bool)():
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    return ASTSource


def _compile(kernel: Any, given: dict[str, Any], options: dict[str, Any], special: frozenset[str]) -> None:
    signature, constants, attributes = {}, {}, {}
    general = {kernel.arg_names[i] for i in getattr(kernel, "do_not_specialize", ()) if isinstance(i, int)}
    general |= {n for n in getattr(kernel, "do_not_specialize", ()) if isinstance(n, str)}
    general -= special
    for i, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = given[name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and name not in general):
            signature[name], constants[(i,)] = "constexpr", value
        elif hasattr(value, "layout") and hasattr(value, "block_shape"):  # a tensor descriptor of Gluon
            block = ", ".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{NAMES[value.base.dtype]}[{block}],{value.layout!r}>"
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = f"*{NAMES[value.dtype]}", [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if name not in general and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {signature} {constants} {attributes} {options}"
    if key in done:
        return
    done.add(key)
    settings = {n: options[n] for n in OPTIONS if n in options and (NVIDIA or n != "launch_pdl")}
    try:
        triton.compile(
            source(kernel)(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
            target=TARGET,
            options=settings,
        )
    except Exception as error:
        cause = error.__cause__ or error
        shown = {kernel.arg_names[i[0]]: v for i, v in constants.items()}
        failures.append(kernel.__name__)
        print(
            f"{kernel.__name__} {shown} {settings}: {type(error).__name__}: {str(cause).strip()[-300:]!r}", flush=True
        )


def weights() -> Iterator[tuple[quanto.QTensor, str]]:
    """Every kind of weight that differs in a kernel."""
    torch.manual_seed(0)
    w = torch.randn(256, 512, dtype=torch.bfloat16)
    if FEW:
        yield quanto.quantize_tensor(w, "int4"), "int4"
        yield quanto.quantize_tensor(w, "mxfp4"), "mxfp4"
        return
    for name in ("int8", "int4", "int3", "int2", "nf4", "fp4", "mxfp4", "nvfp4", "float8_e4m3fn", "float8_e5m2"):
        yield quanto.quantize_tensor(w, name), f"{name}"
    for name in ("int8", "int4", "int3", "int2"):
        yield quanto.quantize_tensor(w.half(), name, symmetric=True), f"{name} fp16"
    for name in ("int8", "int4"):
        yield quanto.quantize_tensor(w, name, symmetric=False, group_size=32), f"{name} g32 zeros"
        yield quanto.quantize_tensor(w, name, granularity="tensor", symmetric=True), f"{name} per tensor"
        yield quanto.quantize_tensor(w, name, symmetric=True, block_size=(16, 128)), f"{name} block"
    yield quanto.quantize_tensor(w[:33, :192], "int4"), "int4 ragged"


def many_tokens() -> None:
    """The kernel with specialized warps: alone at its tiles and not, every kind, with all that it may be given."""
    kinds = ["int4"] if FEW else ["int4", "int8", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2"]
    tiles = (Tile(128, 256, stages=5), Tile(128, 128, stages=8, blocks=132),
             Tile(128, 128, stages=8, blocks=12, cluster=2))  # fmt: skip
    for name, dtype, tile in itertools.product(kinds, (torch.bfloat16, torch.float16), tiles):
        if FEW and dtype == torch.float16:
            continue
        w = quanto.quantize_tensor(torch.randn(256, 512, dtype=dtype), name)
        tensors = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), name, w.block_size, 512)
        x, bias = torch.randn(300, 512, dtype=dtype), torch.randn(256, dtype=dtype) if tile.blocks else None
        f = facts(name, list(w.block_size), 512)
        assert specialized.takes(f, 512, dtype, tensors[2], tensors[1])
        specialized.start(x, tensors, bias, f, x.new_empty(300, 256), tile)


def quantized() -> None:
    """The kernel for quantized activations, likewise."""
    tiles = (Tile(256, 128), Tile(64, 128, stages=7), Tile(128, 256, blocks=132))
    for (name, then), dtype, tile in itertools.product(
        (("int8", "gelu"), ("float8_e4m3fn", ""), ("float8_e5m2", "silu")), (torch.bfloat16, torch.float16), tiles
    ):
        if FEW and (dtype == torch.float16 or tile.bn != 64):
            continue
        x, w = (product.typed(torch.zeros(n, 528, dtype=torch.int8), name) for n in (600, 264))
        bias, out = torch.randn(264, dtype=dtype) if then else None, torch.empty(600, 264, dtype=dtype)
        product.start(x, torch.ones(600), w, torch.ones(264, 1, dtype=dtype), bias, out, tile, then)


def few_tokens() -> None:
    """The kernel that reads the weight ahead, likewise."""
    kinds = ["int4"] if FEW else ["int4", "int8", "int3", "int2", "nf4", "fp4", "float8_e4m3fn", "float8_e5m2"]
    tiles = (Tile(8, 1, 8, stages=3), Tile(64, 16, stages=4, blocks=8), Tile(16, 2, 8, warps=8, stages=3),
             Tile(64, 16, stages=3, blocks=8, cluster=8), Tile(128, 64, stages=3, blocks=8, cluster=8))  # fmt: skip
    for name, dtype, tile in itertools.product(kinds, (torch.bfloat16, torch.float16), tiles):
        if (FEW or name != "int4") and (dtype == torch.float16 or tile.warps == 8):
            continue
        w = quanto.quantize_tensor(torch.randn(256, 512, dtype=dtype), name)
        tensors = TILED.pack((w.codes, w.scale, w.zero_point, w.global_scale), name, w.block_size, 512)
        x, bias = torch.randn(tile.bm, 512, dtype=dtype), torch.randn(256, dtype=dtype) if tile.blocks else None
        f = facts(name, list(w.block_size), 512)
        assert stream.takes(f, 512, dtype, tensors[2], tensors[1])
        stream.start(x, tensors, bias, f, x.new_empty(tile.bm, 256), tile)


def attention() -> None:
    """Of one token: short caches and long ones, masks of both kinds, and as many queries as find no block alone."""
    for length, mask, sms in (
        (64, None, 132),
        (144, torch.ones(1, 1, 1, 144) > 0, 132),
        (144, torch.ones(1, 1, 1, 144) > 0, 4),
        (200, torch.zeros(1, 8, 1, 200), 132),
        (300, torch.ones(1, 1, 1, 300) > 0, 132),
        (9000, torch.zeros(1, 8, 1, 9000), 132),
    ):
        if FEW and length not in (144, 300):
            continue
        attend.sm_count = lambda device, sms=sms: sms
        query = torch.randn(1, 8, 1, 80, dtype=torch.float16 if length == 64 else torch.bfloat16)
        key, value = (torch.randn(1, 2, length, 80, dtype=query.dtype) for _ in range(2))
        attend.attend(query, key, value, mask, 0.1)
        new, one, position = key[:, :, :1], key[:, :1, :1], torch.zeros(1, dtype=torch.int64)
        attend.rotate_and_attend(query, new, new, one, one, position, key, value, mask, 0.1)
    x = torch.randn(1, 4096, dtype=torch.bfloat16)
    norm.rms_norm(x, x[0], 0.1, False)
    norm.add_rms_norm(x, x, x[0], 0.1, True)
    for kind in ("silu",) if FEW else ("silu", "gelu", "gelu_tanh"):
        norm.activate_and_multiply(x, x, kind)


def run() -> None:
    if NVIDIA and TARGET.arch == 90:
        specialized.sm_count = lambda device: 132
        many_tokens()
        quantized()
        few_tokens()
    for w, words in weights():
        name, block, size = w.qtype.name, list(w.block_size), w.columns
        tensors = (w.codes, w.scale, w.zero_point, w.global_scale)
        tiles = None
        if w.codes.shape[0] % 16 == 0:
            tiles = TILED.pack(tensors, name, w.block_size, size)
        bias = torch.randn(w.codes.shape[0], dtype=w.dtype)
        for tokens, tiled in itertools.product((1, 64) if FEW else (1, 16, 64, 256), (False, True)):
            if tiled and tiles is None:
                continue
            x = torch.randn(tokens, size, dtype=w.dtype)
            given = bias if tokens in (1, 64) else None
            linear.linear(x, *(tiles if tiled else tensors), given, name, block, tiled=tiled)
        dense.dequantize(*tensors, name, block, size, w.dtype)
        if tiles is not None:
            dense.dequantize(*tiles, name, block, size, w.dtype, tiled=True)
            dense.dequantize(*tiles, name, block, size, torch.float32, tiled=True)
        dense.embedding(torch.arange(5), *tensors, name, block, size, w.dtype)
        encode.quantize(torch.randn(w.codes.shape[0], size, dtype=w.dtype), *tensors[1:], name, block)
        if "block" not in words and "tensor" not in words:
            three = [None if t is None else t.expand(3, *t.shape).contiguous() if t.ndim else t for t in tensors]
            ends = torch.tensor([2, 9, 40], dtype=torch.int32)
            linear.grouped_linear(torch.randn(40, size, dtype=w.dtype), *three, None, ends, name, [1, *block])
    for qtype, bits in (("int8", 8), ("float8_e4m3fn", 8), ("int4", 4)):
        options = {"granularity": "channel", "symmetric": True} if bits == 4 else {}
        w = quanto.quantize_tensor(torch.randn(256, 512, dtype=torch.bfloat16), qtype, **options)
        x_qtype = qtype if bits == 8 else "int8"
        if qtype == "float8_e4m3fn" and NVIDIA and TARGET.arch < 89:
            continue  # the spec refuses there
        for tokens, static, coded in itertools.product(
            (1, 256) if FEW else (1, 16, 64, 256, 4096), (False, True), (False,) if FEW else (False, True)
        ):
            x = torch.randn(tokens, 512, dtype=torch.bfloat16)
            codes, scale = encode.dynamic_quantize(x, x_qtype, torch.float32)
            bias = torch.randn(256, dtype=torch.bfloat16) if static else None
            scale = torch.tensor(0.05) if static else scale
            out_scale = torch.tensor(0.1) if coded else None
            for zero in (None, torch.zeros(256, 1, dtype=torch.int8)) if bits == 4 else (None,):
                scaled.scaled_linear(
                    codes,
                    scale,
                    w.codes,
                    w.scale,
                    zero,
                    None,
                    bias,
                    x_qtype,
                    qtype,
                    list(w.block_size),
                    out_scale,
                    x.dtype,
                    "silu" if static else "",
                )
    w = quanto.quantize_tensor(torch.randn(256, 512, dtype=torch.bfloat16), "int4")
    codes, scale = encode.dynamic_quantize(torch.randn(3, 512).half(), "int8", torch.float32)
    scaled.scaled_linear(
        codes,
        scale,
        w.codes,
        w.scale,
        w.zero_point,
        None,
        None,
        "int8",
        "int4",
        list(w.block_size),
        None,
        torch.float16,
        "gelu",
    )
    for bits in (2, 3, 4):
        packed = encode.pack(torch.randint(0, 1 << bits, (9, 24), dtype=torch.uint8), bits)
        encode.unpack(packed, bits, 24)
    cublas.widened(torch.ones(264, 1, dtype=torch.bfloat16))
    attention()


def main() -> None:
    Trial.serves = lambda self, device: False  # type: ignore[method-assign]  # compiled on their own, see `many_tokens`
    for module in (attend, cublas, dense, encode, linear, norm, product, scaled, specialized, stream):
        for name, value in (
            ("launch", launch),
            ("assembly", lambda device, kind: NVIDIA and (kind != "float8_e4m3fn" or TARGET.arch >= 89)),
            ("dependent_launch", lambda device: NVIDIA and TARGET.arch >= 90),
            ("warpgroups", lambda device: NVIDIA and TARGET.arch == 90),
            ("casts", lambda device: NVIDIA and TARGET.arch >= 89),
        ):
            if hasattr(module, name):
                setattr(module, name, value)
    assert not runtime.interpreted()
    run()
    print(f"{len(done)} kernels, {len(failures)} failures")


if __name__ == "__main__":
    main()
