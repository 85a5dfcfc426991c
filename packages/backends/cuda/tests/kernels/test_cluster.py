# SPDX-License-Identifier: Apache-2.0
"""How a kernel is made to start in clusters, and that another Triton than expected is refused before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

cluster = pytest.importorskip("quanto_backend_cuda.kernels.cluster", reason="this Triton has no Gluon")
Metadata = namedtuple("Metadata", "num_warps num_ctas shared")

SCRIPT = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from quanto_backend_cuda.kernels.stream import stream
from quanto_backend_cuda.kernels.cluster import room

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_device_interface = lambda self: torch.cuda

driver.set_active(Driver())
codes, x = torch.zeros(256, 256, dtype=torch.uint8), torch.zeros(16, 512, dtype=torch.bfloat16)
scale, out = torch.zeros(256, 4, dtype=torch.bfloat16), torch.zeros(16, 256, dtype=torch.bfloat16)
for size in (1, 4):
    extra = room(size, 64, 16) if size > 1 else 0
    found = stream.warmup(
        x, codes, scale, None, None, None, out, None, None, 16, 256, 512, 4, 4, size, KIND="int4", GROUP=128, BN=64,
        BM=16, KW=1, STAGES=3, PDL=True, CLUSTER=size, EXTRA=extra, num_warps=4, launch_pdl=True, grid=(4,)
    )
    warps, blocks, shared = found.packed_metadata
    assert (warps, shared) == (4, found.metadata.shared), found.packed_metadata
    assert blocks == found.metadata.num_ctas
    print(blocks)
"""


class Kernel:
    """What `in_clusters` asks of a kernel of Triton."""

    arg_names = ("x", "CLUSTER", "EXTRA")

    def __init__(self, size: int, extra: int, packed: Any = (4, 1, 1000), module: Any = None) -> None:
        self.found = SimpleNamespace(
            src=SimpleNamespace(constants={(1,): size, (2,): extra}),
            metadata=Metadata(4, 1, 1000),
            packed_metadata=packed,
            module=module,
        )
        self.compile = lambda: self.found

    def _do_compile(self) -> Any:
        return self.compile()


def test_a_kernel_gets_its_cluster_and_its_shared_memory() -> None:
    kernel = cluster.in_clusters(Kernel(4, 256))
    assert kernel.clusters
    found = kernel._do_compile()
    kernel.found = Kernel(4, 256).found
    assert kernel._do_compile().packed_metadata == found.packed_metadata, "another one"
    assert found.packed_metadata == (4, 4, 1280)
    assert found.metadata == Metadata(4, 4, 1280), "what the driver is asked for, when the kernel is loaded"


def test_a_kernel_without_clusters_stays_as_it_is() -> None:
    found = cluster.in_clusters(Kernel(1, 0))._do_compile()
    assert found.packed_metadata == (4, 1, 1000)
    assert found.metadata == Metadata(4, 1, 1000)


@pytest.mark.parametrize("other", [{"packed": (4, 1, 1, 1, 1, 1000)}, {"module": "loaded"}])
def test_another_triton_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="another way"):
        cluster.in_clusters(Kernel(2, 256, **other))._do_compile()
    assert not hasattr(cluster.in_clusters(SimpleNamespace()), "clusters")


@pytest.mark.parametrize(("size", "rows", "tokens"), [(2, 128, 16), (8, 128, 16), (8, 64, 64), (4, 16, 8)])
def test_there_is_room_for_the_parts_of_all_others(size: int, rows: int, tokens: int) -> None:
    nbytes = cluster.part(rows // size, tokens)
    assert nbytes >= rows // size * tokens * 4
    assert nbytes % 16 == 0, "bulk copies"
    room = cluster.room(size, rows, tokens)
    assert room % 128 == 0
    assert room >= 128 + (size - 1) * nbytes


@pytest.mark.parametrize(("rows", "tokens"), [(128, 128), (128, 256), (256, 64)])
def test_there_is_room_for_the_half_that_comes_and_that_which_goes(rows: int, tokens: int) -> None:
    room = cluster.room_of_halves(rows, tokens)
    assert room % 128 == 0
    assert room >= 128 + 2 * rows // 2 * tokens * 4


def test_this_triton_starts_clusters(tmp_path: Path) -> None:
    """Compiled by Triton itself, for a GPU that need not be there."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["1", "4"], "blocks of a cluster"
