# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for kernels, of this repository's or anyone's.

    pip install "quanto-core[testing]"
    pytest --pyargs quanto.testing --backend NAME

`NAME` is a distribution or a kernel; without it every kernel but the references is tested. Each kernel is compared
element by element with the reference over all that its `KernelSpec` claims, and over nothing that it refuses.
"""

from .cases import Case, cases
from .checks import CHECKS, Check, Disagreement
from .run import failures

__all__ = ["CHECKS", "Case", "Check", "Disagreement", "cases", "failures"]
