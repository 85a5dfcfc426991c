# SPDX-License-Identifier: Apache-2.0
"""Six-bit weights for quanto: a data type, a clipping quantizer and a CPU kernel."""

import torch

from quanto import QType
from quanto.plugins import hookimpl

QUANTO_API = 1

int6 = QType("int6", 6, torch.int8)


@hookimpl
def register_qtypes(register):
    register(int6)


@hookimpl
def register_quantizers(register):
    from .clip import ClipQuantizer

    register(ClipQuantizer())


@hookimpl
def register_kernels(registry):
    from . import kernel

    registry.register(kernel.SPEC)
