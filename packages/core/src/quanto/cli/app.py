# SPDX-License-Identifier: Apache-2.0
"""`App`: the command line of core and plugins together."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from .._version import __version__
from ..plugins.manager import PluginManager, plugins
from .errors import (
    FAILED,
    INTERRUPTED,
    PIPE_CLOSED,
    CommandLineError,
    complain,
    complain_of_usage,
    flushed_stdout,
    guarded,
    plain_warnings,
)

__all__ = ["App", "make_app", "run"]


class _Group(TyperGroup):
    """Runs every subcommand, those of plugins too, under the same guard; a wrong command line is one line too."""

    def invoke(self, ctx: Any) -> None:
        with guarded():
            super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        alone = options.pop("standalone_mode", True)
        options["standalone_mode"] = False
        if not alone:
            return super().main(*args, **options)
        try:
            status = super().main(*args, **options)
        except CommandLineError as error:
            sys.exit(complain_of_usage(error))
        except typer.Abort:
            sys.exit(INTERRUPTED)
        sys.exit(status)


class App(typer.Typer):
    """A `typer.Typer` in which each plugin's commands are added whole or not at all."""

    def __init__(self) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
        self._owners: dict[str, str] = {}

    @contextlib.contextmanager
    def transaction(self, origin: str) -> Iterator[None]:
        """Adds what is registered in the block, in the name of a plugin.

        Raises:
            ValueError: if another plugin or core has a command of that name, or the block sets a callback.
        """
        before = self.registered_commands, self.registered_groups, self.registered_callback
        self.registered_commands, self.registered_groups, self.registered_callback = [], [], None
        try:
            yield
            if self.registered_callback is not None:
                raise ValueError("app.callback() is for quanto itself; a plugin adds commands and groups")
            names = list(get_group(self).commands)  # builds them: a signature that typer can't read fails here
            for name in names:
                if name in self._owners:
                    raise ValueError(f"{self._owners[name]} has a command {name!r} already")
        except BaseException:
            self.registered_commands, self.registered_groups, self.registered_callback = before
            raise
        self._owners.update(dict.fromkeys(names, origin))
        self.registered_commands = before[0] + self.registered_commands
        self.registered_groups = before[1] + self.registered_groups
        self.registered_callback = before[2]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"quanto-core {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Quantization for PyTorch."""


def make_app(manager: PluginManager = plugins) -> App:
    """Builds the command line: core's commands, then those of every plugin, each with its own guard."""
    app = App()
    app.callback()(_root)
    with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints at import is no part of a command's output
        manager.register_commands(app)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (see `quanto.cli.main`)."""
    try:
        with plain_warnings(), flushed_stdout():
            return _status(get_command(make_app()), arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return PIPE_CLOSED
    except OSError as error:  # a full disk, most likely
        complain(error)
        return FAILED


def _status(command: Any, arguments: Sequence[str] | None) -> int:
    try:
        command.main(args=None if arguments is None else list(arguments), prog_name="quanto")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0
