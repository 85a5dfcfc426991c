# SPDX-License-Identifier: Apache-2.0
"""Makes the package examples/demo importable, as it is for who runs `python -m demo` in examples/."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tree import ROOT


@pytest.fixture(scope="module", autouse=True)
def demo_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield
