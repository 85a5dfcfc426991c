# SPDX-License-Identifier: Apache-2.0
"""Beside optimum-quanto nothing is imported."""

from __future__ import annotations

from importlib import metadata

import pytest

from optimum.quanto._conflict import refuse_both


def test_beside_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.2.7")
    with pytest.raises(ImportError, match=r"optimum-quanto 0\.2\.7 and quanto-optimum both install"):
        refuse_both()


def test_alone() -> None:
    refuse_both()


def test_found_by_both_libraries() -> None:
    assert "optimum" in (metadata.distribution("quanto-optimum").read_text("top_level.txt") or "").split()
