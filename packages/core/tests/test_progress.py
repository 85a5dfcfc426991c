# SPDX-License-Identifier: Apache-2.0
"""The progress bar shows itself on terminals only, and never changes what is iterated."""

from __future__ import annotations

import sys

import pytest

from quanto import _progress
from quanto._progress import track


def become_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called in the test itself: pytest exchanges standard error between the fixtures and the test."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_no_terminal_means_the_iterable_itself() -> None:
    elements = [1, 2, 3]
    assert track(elements, "work") is elements


def test_never_where_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    become_terminal(monkeypatch)
    elements = [1, 2, 3]
    assert track(elements, "work", enabled=False) is elements


def test_without_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    elements = [1, 2, 3]
    assert track(elements, "work") is elements


def test_without_rich_nothing_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_progress, "find_spec", lambda name: None)
    elements = [1, 2, 3]
    assert track(elements, "work", enabled=True) is elements
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    become_terminal(monkeypatch)
    assert list(track([1, 2, 3], "packing")) == [1, 2, 3]
    shown = capsys.readouterr()
    assert "packing" in shown.err
    assert "3/3" in shown.err
    assert shown.out == ""


def test_asked_for_it_shows_in_a_log_too(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert list(track(iter("ab"), "packing", total=2, enabled=True)) == ["a", "b"]
    assert "2/2" in capsys.readouterr().err


def test_a_terminal_that_cannot_redraw_gets_the_final_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    become_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert list(track([1, 2, 3], "packing")) == [1, 2, 3]
    assert capsys.readouterr().err.count("3/3") == 1


def test_an_unknown_length(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    assert list(track((i * i for i in range(3)), "packing", enabled=True)) == [0, 1, 4]
    assert "3/?" in capsys.readouterr().err


def test_it_is_lazy_and_stops_with_its_user(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    taken = []

    def source():
        for i in range(10):
            taken.append(i)
            yield i

    for i in track(source(), "packing", total=10, enabled=True):
        if i == 1:
            break
    assert taken == [0, 1]
    assert "1/10" in capsys.readouterr().err
    # The live display is gone: another one may start.
    assert list(track([1], "again", enabled=True)) == [1]


def test_an_error_passes_through() -> None:
    pytest.importorskip("rich")

    def source():
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(track(source(), "packing", total=2, enabled=True))
