# SPDX-License-Identifier: Apache-2.0
"""Progress bars of transformers are for terminals."""

from __future__ import annotations

import sys

import pytest
from transformers.utils import logging

from quanto_transformers.progress import quiet_unless_seen


@pytest.mark.parametrize(
    ("terminal", "before", "meanwhile"), [(True, 1, 1), (False, 1, 0), (False, 0, 0), (True, 0, 0)]
)
def test_bars_are_for_terminals(terminal: bool, before: int, meanwhile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    shown = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    try:
        with quiet_unless_seen():
            assert logging.is_progress_bar_enabled() == meanwhile
        assert logging.is_progress_bar_enabled() == before
    finally:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
