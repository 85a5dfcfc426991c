# SPDX-License-Identifier: Apache-2.0
"""The subcommands that core brings."""

from __future__ import annotations

import pytest
from typer.main import get_group

from quanto.cli import commands
from quanto.cli.app import App


@pytest.mark.parametrize("name", ["quantize", "inspect", "eval", "plan", "bench", "info"])
def test_each_command_says_what_it_does(name: str) -> None:
    app = App()
    commands.register(app)
    assert (get_group(app).commands[name].help or "").endswith(".")
