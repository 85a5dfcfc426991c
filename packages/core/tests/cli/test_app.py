# SPDX-License-Identifier: Apache-2.0
"""Core's commands and those of plugins side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import quanto
from quanto.cli.app import App, make_app, run
from quanto.plugins import PluginManager, hookimpl

Make = Callable[..., PluginManager]


def invoke(manager: PluginManager, *arguments: str) -> Any:
    return CliRunner().invoke(make_app(manager), list(arguments))


def hello(app: typer.Typer) -> None:
    @app.command()
    def hello(name: str = "you") -> None:
        typer.echo(f"hello {name}")


def fails(app: typer.Typer) -> None:
    @app.command()
    def half() -> None: ...

    raise LookupError("no such library")


def test_a_plugin_adds_commands_and_groups(manager_with: Make) -> None:
    def group(app: typer.Typer) -> None:
        cache = typer.Typer()
        app.add_typer(cache, name="cache")

        @cache.command()
        def clear() -> None:
            typer.echo("cleared")

        @cache.command()
        def size() -> None: ...

    manager = manager_with(hello=hello, group=group)
    assert invoke(manager, "hello", "--name", "me").stdout == "hello me\n"
    assert invoke(manager, "cache", "clear").stdout == "cleared\n"
    assert invoke(manager, "info").exit_code == 0


def test_a_hook_may_leave_out_its_argument(manager_with: Make) -> None:
    assert invoke(manager_with(idle=lambda: None), "--version").exit_code == 0


def test_a_failing_hook_is_reported_once_and_leaves_nothing(manager_with: Make) -> None:
    manager = manager_with(bad=fails, good=hello)
    with pytest.warns(RuntimeWarning, match=r"'bad': its commands were left out: LookupError: no such library") as seen:
        assert invoke(manager, "hello").stdout == "hello you\n"
    assert len(seen) == 1
    bad, good = manager.records
    assert bad.status == "loaded"
    assert bad.reason == "its commands were left out: LookupError: no such library"
    assert "in fails" in bad.detail
    assert (good.reason, good.detail) == ("", "")
    with pytest.warns(RuntimeWarning):
        assert invoke(manager, "half").exit_code == 2


def clash(app: typer.Typer) -> None:
    @app.command("info")
    def other() -> None:
        typer.echo("not core's")

    @app.command()
    def more() -> None: ...


def test_a_name_that_core_has_stays_core_s(manager_with: Make) -> None:
    with pytest.warns(RuntimeWarning, match=r"'mine': .* quanto-core has a command 'info' already"):
        result = invoke(manager_with(mine=clash), "info")
    assert "reference.linear" in result.stdout
    assert "not core's" not in result.stdout
    with pytest.warns(RuntimeWarning):
        assert invoke(manager_with(mine=clash), "more").exit_code == 2, "all of the plugin's commands are left out"


def test_core_comes_first_whatever_a_plugin_asks_for(manager_with: Make) -> None:
    manager = manager_with()
    plugin = type("Plugin", (), {"register_commands": staticmethod(hookimpl(clash, trylast=True))})()
    manager.pm.register(plugin, name="mine")
    with pytest.warns(RuntimeWarning, match="quanto-core has a command 'info' already"):
        assert "reference.linear" in invoke(manager, "info").stdout


def test_the_first_of_two_plugins_keeps_a_name(manager_with: Make) -> None:
    with pytest.warns(RuntimeWarning, match="'second': .* first has a command 'hello' already"):
        assert invoke(manager_with(first=hello, second=hello), "hello").stdout == "hello you\n"


def test_a_group_clashes_with_a_command(manager_with: Make) -> None:
    def group(app: typer.Typer) -> None:
        app.add_typer(typer.Typer(), name="hello")

    with pytest.warns(RuntimeWarning, match="first has a command 'hello' already"):
        assert invoke(manager_with(first=hello, second=group), "hello").stdout == "hello you\n"


def test_the_options_of_quanto_itself_are_not_a_plugin_s(manager_with: Make) -> None:
    def callback(app: typer.Typer) -> None:
        app.callback()(lambda: None)

    with pytest.warns(RuntimeWarning, match=r"app\.callback\(\) is for quanto itself"):
        assert invoke(manager_with(greedy=callback), "--version").stdout == f"quanto-core {quanto.__version__}\n"


def test_a_signature_that_typer_cannot_read_harms_its_plugin_alone(manager_with: Make) -> None:
    def unreadable(app: typer.Typer) -> None:
        @app.command()
        def twice(x: Annotated[str, typer.Option(), typer.Argument()]) -> None: ...

    with pytest.warns(RuntimeWarning, match="'odd': its commands were left out"):
        assert invoke(manager_with(odd=unreadable, good=hello), "hello").exit_code == 0


def test_what_a_plugin_prints_is_not_output(manager_with: Make, capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(app: typer.Typer) -> None:
        print("welcome")

    make_app(manager_with(chatty=chatty))
    assert capsys.readouterr() == ("", "welcome\n")


def test_a_fault_of_core_s_own_commands_is_not_hidden(manager_with: Make) -> None:
    class Full(App):
        def transaction(self, origin: str) -> Any:
            raise LookupError(origin)

    with pytest.raises(LookupError, match="quanto-core"):
        manager_with().register_commands(Full())


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("the model\nis odd"), 2, "quanto: error: the model is odd\n"),
        (FileNotFoundError(2, "No such file or directory", "x.bin"), 2, "quanto: error: x.bin: No such file"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(7), 7, ""),
    ],
)
def test_errors_in_a_plugin_s_command(manager_with: Make, error: BaseException, status: int, line: str) -> None:
    def broken(app: typer.Typer) -> None:
        @app.command()
        def go() -> None:
            raise error

    result = invoke(manager_with(broken=broken), "go")
    assert result.exit_code == status
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") <= 1
    assert result.stdout == ""


def test_a_bug_is_no_error_of_the_user(manager_with: Make) -> None:
    def broken(app: typer.Typer) -> None:
        @app.command()
        def go() -> None:
            raise RuntimeError("a bug")

    assert isinstance(invoke(manager_with(broken=broken), "go").exception, RuntimeError)


@pytest.mark.parametrize("arguments", [["nothing"], ["info", "--nothing"], ["--nothing"], ["info", "surplus"]])
def test_a_wrong_command_line_is_status_2(manager_with: Make, arguments: list[str]) -> None:
    result = invoke(manager_with(), *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("quanto: error: No such" if "surplus" not in arguments else "quanto: error: Got")
    assert result.stderr.endswith("--help\n")
    assert result.stderr.count("\n") == 1


def test_no_words_show_the_help(manager_with: Make) -> None:
    result = invoke(manager_with())
    assert result.exit_code == 2
    assert "Usage: " in result.output


def test_an_aborted_command_is_interrupted(manager_with: Make) -> None:
    def asking(app: typer.Typer) -> None:
        @app.command()
        def go() -> int:
            if not typer.confirm("Sure?"):
                raise typer.Abort
            return 5  # no status

    assert CliRunner().invoke(make_app(manager_with(asking=asking)), ["go"], input="n\n").exit_code == 130
    assert CliRunner().invoke(make_app(manager_with(asking=asking)), ["go"], input="y\n").exit_code == 0


def test_run_returns_the_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"quanto-core {quanto.__version__}\n"
    assert run(["nothing"]) == 2
    monkeypatch.setattr(sys, "argv", ["quanto", "info", "--op", "nothing"])
    assert run() == 2
    assert "quanto: error: no kernel with the op 'nothing'; there are: quantize, " in capsys.readouterr().err
