# SPDX-License-Identifier: Apache-2.0
"""Dependent launch (Hopper and later): a kernel begins before the one ahead of it has ended.

A kernel waits before it lets the next one begin. So whatever begins knows that all but the kernel right ahead of it
have ended, and Inductor's kernels, which wait only for what they read of that one, may stand between ours.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["launch_dependents", "prefetch", "wait_for_kernel_ahead"]


@triton.jit
def launch_dependents():
    """Lets the next kernel begin once every block of threads has come here, after its wait."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_kernel_ahead():
    """Waits until the kernel ahead has ended, and what it wrote can be read."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch(pointers, wanted):
    """Brings what pointers point at, where wanted, to the L2. This may come before the wait: nothing is read."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointers.to(tl.int64), wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
