# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's MatMulNBits, 4 and 8 bits, accuracy level 0 (activations as they are) and 4 (int8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..candidate import Built, Candidate, Missing, count
from ..problem import Problem

__all__ = ["candidates"]

GROUP = 128


def candidates() -> Iterator[Candidate]:
    """Both widths at both levels."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise Missing(str(error)) from error
    onnxruntime.set_default_logger_severity(3)
    for bits in (4, 8):
        for level, compute in ((0, "exact"), (4, "integer")):
            weights = f"int4 g{GROUP}" if bits == 4 else "int8"
            name = f"MatMulNBits {bits} bits g{GROUP}, accuracy {level}"
            yield Candidate("onnxruntime", name, weights, compute, torch.float32, _build(bits, level), True)


def _build(bits: int, level: int) -> Callable[[Problem, int], Built]:
    def build(problem: Problem, megabytes: int) -> Built:
        return _Sessions(problem, bits, level, megabytes)

    return build


class _Sessions:
    """One session for each copy of the weight and number of threads."""

    def __init__(self, problem: Problem, bits: int, level: int, megabytes: int) -> None:
        if bits == 4:
            codes, scale = problem.int4(GROUP)
            packed = codes[:, ::2] | codes[:, 1::2] << 4
        else:
            q = problem.quantized("int8", GROUP)
            scale = q.weight().scale.float()
            codes = (q.weight().codes.int() + 128).to(torch.uint8)
            packed = codes
        middle = 1 << (bits - 1)
        self._values = lambda: (codes.double() - middle) * scale.double().repeat_interleave(GROUP, 1)
        self._model = _model(packed.reshape(problem.n, -1, GROUP * bits // 8), scale, problem, bits, level)
        self.nbytes = packed.nbytes + scale.nbytes
        self._copies = len(list(count(self.nbytes, megabytes)))
        self._sessions: dict[int, list[Any]] = {}

    @property
    def weight(self) -> Tensor:
        return self._values()

    def calls(self, x: Tensor, threads: int) -> list[Callable[[], Any]]:
        import onnxruntime

        if threads not in self._sessions:
            self._sessions.clear()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._sessions[threads] = [
                onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
                for _ in range(self._copies)
            ]
        value = {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())}
        return [lambda s=s: s.run_with_ort_values(["y"], value) for s in self._sessions[threads]]

    def output(self, result: Any) -> Tensor:
        return torch.from_numpy(result[0].numpy())


def _model(packed: Tensor, scale: Tensor, problem: Problem, bits: int, level: int) -> bytes:
    from onnx import TensorProto, helper

    def constant(name: str, kind: int, tensor: Tensor) -> Any:
        return helper.make_tensor(name, kind, tensor.shape, tensor.contiguous().numpy().tobytes(), raw=True)

    attributes = {"K": problem.k, "N": problem.n, "bits": bits, "block_size": GROUP, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", problem.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", problem.n])],
        [constant("w", TensorProto.UINT8, packed), constant("s", TensorProto.FLOAT, scale.reshape(-1))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made
