# SPDX-License-Identifier: Apache-2.0
"""How a kernel is made to start in clusters, and that another Triton than expected is refused before anything runs."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest

cluster = pytest.importorskip("quanto_backend_cuda.kernels.cluster", reason="this Triton has no Gluon")
Metadata = namedtuple("Metadata", "num_warps num_ctas shared")


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

    def _do_compile(self, *args: Any, **kwargs: Any) -> Any:
        return self.found


def test_a_kernel_gets_its_cluster_and_its_shared_memory() -> None:
    kernel = cluster.in_clusters(Kernel(4, 256))
    assert kernel.clusters
    found = kernel._do_compile()
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
