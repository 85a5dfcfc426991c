# SPDX-License-Identifier: Apache-2.0
"""Dependent launch (Hopper and later): a kernel begins before the one ahead of it has ended.

A kernel waits before it lets the next one begin. So whatever begins knows that all but the kernel right ahead of it
have ended, and Inductor's kernels, which wait only for what they read of that one, may stand between ours.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["launch_dependents", "wait_for_kernel_ahead"]


@triton.jit
def launch_dependents():
    """Lets the next kernel begin once every block of threads has come here, after its wait."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_kernel_ahead():
    """Waits until the kernel ahead has ended, and what it wrote can be read."""
    tl.extra.cuda.gdc_wait()
