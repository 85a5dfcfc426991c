# SPDX-License-Identifier: Apache-2.0
"""How errors, warnings and interrupts look: one line on standard error, and an exit status."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import typer

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "PIPE_CLOSED",
    "CommandLineError",
    "complain",
    "complain_of_usage",
    "flushed_stdout",
    "guarded",
    "one_line",
    "plain_warnings",
]

PIPE_CLOSED, FAILED, INTERRUPTED = 1, 2, 130  # 130: 128 + SIGINT, as shells report it

#: what typer raises for words that it can't read; it is click's, of which typer 0.29 carries a copy
CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def complain(error: BaseException) -> None:
    """Writes the line of an error to standard error."""
    typer.echo(f"quanto: error: {one_line(error)}", err=True)


def complain_of_usage(error: Any) -> int:
    """Writes the line of a wrong command line, or the help that stands for no words at all; returns the status."""
    message = " ".join(error.format_message().split())
    command = "quanto" if getattr(error, "ctx", None) is None else error.ctx.command_path
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        typer.echo(f"quanto: error: {message.rstrip('.')}; see {command} --help", err=True)
    status: int = error.exit_code
    return status


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Turns what a user can cause, `ValueError` and `OSError`, into one line and status 2; the rest is a bug.

    Raises:
        typer.Exit: for such an error, and for an interrupt.
    """
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except (ValueError, OSError) as error:
        complain(error)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows each warning as one line on standard error, without the place in the source."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split()).removeprefix("quanto: ")
        typer.echo(f"quanto: warning: {text}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def flushed_stdout() -> Iterator[None]:
    """Delivers what is written in the block, or raises; nothing is left for the interpreter to complain about at exit.

    No character fails for the terminal's encoding; where standard output is closed, nothing is written.

    Raises:
        OSError: if it could not be delivered; a `BrokenPipeError` if nobody reads any more.
    """
    if sys.stdout is None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
        return
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
