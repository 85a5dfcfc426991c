# SPDX-License-Identifier: Apache-2.0
"""What is begun early is begun once, on GPUs alone, and fails in silence."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from quanto_backend_cuda import beginning


def test_begins_once(monkeypatch: Any) -> None:
    calls: list[str] = []

    def fails() -> None:
        calls.append(threading.current_thread().name)
        raise ImportError("no triton")

    monkeypatch.setattr(beginning, "_PARTS", {"a": fails, "b": fails})
    monkeypatch.setattr(beginning, "_begun", [])
    monkeypatch.setattr(beginning, "interpreted", lambda: False)
    beginning.begin(torch.device("cpu"))
    assert beginning._begun == []
    for _ in range(3):
        beginning.begin(torch.device("cuda"))
    for thread in beginning._begun:
        thread.join()
    assert calls == ["quanto-triton"] * 2


@pytest.mark.gpu
def test_its_parts_work() -> None:
    for part in beginning._PARTS.values():
        part()
