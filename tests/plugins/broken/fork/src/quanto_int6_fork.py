# SPDX-License-Identifier: Apache-2.0
"""A fork of quanto-int6: right by itself, and in conflict where both are installed."""

import torch

from quanto import KernelSpec, QType
from quanto.plugins import hookimpl
from quanto.quantizers import AbsmaxQuantizer

QUANTO_API = 1


class ForkQuantizer(AbsmaxQuantizer):
    """Registered before the kernel that conflicts, and taken back with it."""

    name = "fork-absmax"


@hookimpl
def register_qtypes(register):
    register(QType("int6", 6, torch.int8))


@hookimpl
def register_quantizers(register):
    register(ForkQuantizer())


@hookimpl
def register_kernels(registry):
    fn = torch.ops.quanto_core.linear.default
    registry.register(KernelSpec("int6-fork.linear", "linear", "cpu", fn, {"int6"}, zero_points={"int"}))
