# SPDX-License-Identifier: Apache-2.0
"""A kernel that registers in good order and returns wrong numbers."""

import torch

from quanto import KernelSpec
from quanto.plugins import hookimpl

QUANTO_API = 1


def linear(x, codes, scale, zero_point, global_scale, bias, qtype, block_size):
    """`quanto_core::linear` without its bias, a fault that a released kernel had for a year."""
    return torch.ops.quanto_core.linear(x, codes, scale, zero_point, global_scale, None, qtype, block_size)


@hookimpl
def register_kernels(registry):
    registry.register(KernelSpec("liar.linear", "linear", "cpu", linear, {"nf4"}, priority=200))
