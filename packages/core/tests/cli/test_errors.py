# SPDX-License-Identifier: Apache-2.0
"""One line and a status for each kind of error."""

from __future__ import annotations

import io
import sys
import warnings

import pytest
import typer

from quanto.cli.errors import flushed_stdout, guarded, one_line, plain_warnings
from quanto.serialization import FormatError


def missing_file() -> OSError:
    try:
        open("no/such/file")  # noqa: SIM115
    except OSError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("group_size must be positive"), "group_size must be positive"),
        (FormatError("model: two\n   lines"), "model: two lines"),
        (missing_file(), "no/such/file: No such file or directory"),
        (OSError("no connection"), "no connection"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_status_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end, guarded():
        raise error
    assert end.value.exit_code == 2
    assert capsys.readouterr() == ("", f"quanto: error: {line}\n")
    assert one_line(error) == line


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, guarded():
        raise KeyboardInterrupt
    assert end.value.exit_code == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug"), BrokenPipeError()])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), guarded():
        raise error


def test_warnings_are_single_lines_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with plain_warnings():
        warnings.simplefilter("always")
        warnings.warn("quanto: the plugin 'x'\n was left out", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "quanto: warning: the plugin 'x' was left out\n")
    assert warnings.showwarning is before


def test_a_character_that_the_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with flushed_stdout():
        sys.stdout.write("µ")
    assert raw.getvalue() == rb"\xb5"


def test_a_closed_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with flushed_stdout():
        sys.stdout.write("nobody reads this")
    assert sys.stdout is None
