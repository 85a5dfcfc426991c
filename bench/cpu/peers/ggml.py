# SPDX-License-Identifier: Apache-2.0
"""ggml's matrix product, in plain buffers and in CPU_REPACK, which interleaves rows for the vector unit."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..candidate import Built, Candidate, Missing, count
from ..problem import Problem

__all__ = ["candidates"]

POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
TYPES = {"Q4_0": (2, "int4 g32"), "Q4_K": (12, "int4 g32"), "Q8_0": (8, "int8")}
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_cpu_init": (POINTER, ()),
    "ggml_backend_cpu_reg": (POINTER, ()),
    "ggml_backend_cpu_buffer_type": (POINTER, ()),
    "ggml_backend_cpu_set_n_threads": (None, (POINTER, ctypes.c_int)),
    "ggml_backend_reg_get_proc_address": (POINTER, (POINTER, ctypes.c_char_p)),
    "ggml_backend_reg_dev_get": (POINTER, (POINTER, SIZE)),
    "ggml_backend_buft_name": (ctypes.c_char_p, (POINTER,)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, (POINTER, POINTER)),
    "ggml_backend_buffer_free": (None, (POINTER,)),
    "ggml_backend_tensor_set": (None, (POINTER, POINTER, SIZE, SIZE)),
    "ggml_backend_tensor_get": (None, (POINTER, POINTER, SIZE, SIZE)),
    "ggml_backend_supports_op": (ctypes.c_bool, (POINTER, POINTER)),
    "ggml_backend_graph_compute": (ctypes.c_int, (POINTER, POINTER)),
    "ggml_new_tensor_2d": (POINTER, (POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_mul_mat": (POINTER, (POINTER, POINTER, POINTER)),
    "ggml_new_graph_custom": (POINTER, (POINTER, SIZE, ctypes.c_bool)),
    "ggml_build_forward_expand": (None, (POINTER, POINTER)),
    "ggml_row_size": (SIZE, (ctypes.c_int, ctypes.c_int64)),
    "ggml_quantize_chunk": (SIZE, (ctypes.c_int, POINTER, POINTER, *(ctypes.c_int64,) * 3, POINTER)),
    "ggml_free": (None, (POINTER,)),
    "ggml_log_set": (None, (POINTER, POINTER)),
}
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, POINTER)(lambda *_: None)


def candidates() -> Iterator[Candidate]:
    """Each format in each kind of buffer that takes it."""
    lib = _library()
    kinds = {"plain buffers": lib.ggml_backend_cpu_buffer_type(), **_extra(lib)}
    for name, (kind, weights) in TYPES.items():
        for buffers, buffer_type in kinds.items():
            if _takes(lib, kind, buffer_type):
                build = _build(name, kind, buffer_type)
                best = buffers != "plain buffers" or name == "Q8_0"
                yield Candidate("ggml", f"{name}, {buffers}", weights, "integer", torch.float32, build, best)


@cache
def _library() -> Any:
    r"""ggml as this process may see it.

    On a masked processor that is a build for AVX2, since ggml does not ask the processor:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" \
        pip install --no-deps --target <prefix of the environment>/ggml-avx2 ggml-py
    """
    from ..profiles import masked

    folder = Path(sys.prefix, "ggml-avx2")
    if masked():
        if not folder.exists():
            raise Missing(f"no ggml for AVX2 in {folder}; the docstring of this function says how to build it")
        sys.path.insert(0, str(folder))
    try:
        import ggml
    except (ImportError, OSError, RuntimeError) as error:
        raise Missing(str(error)) from error
    lib = ggml.ggml.libs[0]
    # Prototypes of our own, in another handle: those of the package truncate some pointers (0.10.1).
    lib = ctypes.CDLL(lib._name)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.ggml_log_set(LOG, None)
    return lib


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool))


def _context(lib: Any, tensors: int) -> int:
    lib.ggml_init.restype, lib.ggml_init.argtypes = POINTER, [_Init]
    made: int = lib.ggml_init(_Init(tensors * 4096 + 4096, None, True))
    return made


def _extra(lib: Any) -> dict[str, int]:
    """Buffer types beside the plain one: CPU_REPACK, AMX."""
    registry = lib.ggml_backend_cpu_reg()
    address = lib.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return {}
    list_them = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)
    found, types, index = {}, list_them(lib.ggml_backend_reg_dev_get(registry, 0)), 0
    while types[index]:
        found[lib.ggml_backend_buft_name(types[index]).decode()] = types[index]
        index += 1
    return found


def _takes(lib: Any, kind: int, buffer_type: int) -> bool:
    """Whether a buffer type has a kernel for a format."""
    context = _context(lib, 8)
    weight = lib.ggml_new_tensor_2d(context, kind, 512, 64)
    buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
    product = lib.ggml_mul_mat(context, weight, lib.ggml_new_tensor_2d(context, 0, 512, 1))
    takes = bool(lib.ggml_backend_supports_op(_backend(), product))
    lib.ggml_backend_buffer_free(buffer)
    lib.ggml_free(context)
    return takes


@cache
def _backend() -> int:
    made: int = _library().ggml_backend_cpu_init()
    return made


def _build(name: str, kind: int, buffer_type: int) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        return _Graphs(problem, name, kind, buffer_type, megabytes)

    return build


class _Graphs:
    """One graph of one product for each copy of the weight."""

    def __init__(self, problem: Problem, name: str, kind: int, buffer_type: int, megabytes: int) -> None:
        lib, n, k = _library(), problem.n, problem.k
        self._shape, self._name = (n, k), name
        self.nbytes = lib.ggml_row_size(kind, k) * n
        self._raw = torch.empty(self.nbytes, dtype=torch.uint8)
        values = problem.values.contiguous()
        lib.ggml_quantize_chunk(kind, values.data_ptr(), self._raw.data_ptr(), 0, n, k, None)
        copies = len(list(count(self.nbytes, megabytes)))
        self._context = _context(lib, copies)
        self._weights = [lib.ggml_new_tensor_2d(self._context, kind, k, n) for _ in range(copies)]
        self._buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)
        for weight in self._weights:
            lib.ggml_backend_tensor_set(weight, self._raw.data_ptr(), 0, self.nbytes)
        self._products: tuple[int, int] | None = None

    @property
    def weight(self) -> Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        rows = self._raw.numpy().reshape(self._shape[0], -1)
        return torch.from_numpy(dequantize(rows, GGMLQuantizationType[self._name])).double()

    def calls(self, x: Tensor, threads: int) -> list[Callable[[], Any]]:
        lib = _library()
        self._free()
        lib.ggml_backend_cpu_set_n_threads(_backend(), threads)
        context = _context(lib, 4 * len(self._weights) + 4)
        held = lib.ggml_new_tensor_2d(context, 0, self._shape[1], x.shape[0])
        products = [lib.ggml_mul_mat(context, weight, held) for weight in self._weights]
        graphs = []
        for product in products:
            graph = lib.ggml_new_graph_custom(context, 4, False)
            lib.ggml_build_forward_expand(graph, product)
            graphs.append(graph)
        buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, lib.ggml_backend_cpu_buffer_type())
        lib.ggml_backend_tensor_set(held, x.data_ptr(), 0, x.nbytes)
        self._products, self._tokens = (context, buffer), x.shape[0]

        def call(graph: int, product: int) -> int:
            lib.ggml_backend_graph_compute(_backend(), graph)
            return product

        return [lambda g=g, p=p: call(g, p) for g, p in zip(graphs, products, strict=True)]

    def output(self, result: Any) -> Tensor:
        made = torch.empty(self._tokens, self._shape[0])
        _library().ggml_backend_tensor_get(result, made.data_ptr(), 0, made.nbytes)
        return made

    def _free(self) -> None:
        if self._products is not None:
            context, buffer = self._products
            _library().ggml_backend_buffer_free(buffer)
            _library().ggml_free(context)
            self._products = None

    def __del__(self) -> None:
        self._free()
        _library().ggml_backend_buffer_free(self._buffer)
        _library().ggml_free(self._context)
