# SPDX-License-Identifier: Apache-2.0
"""What `optimum-cli` finds here: it imports every file of `optimum.commands.register`, so nothing heavy is."""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

__all__ = ["REGISTER_COMMANDS", "QuantizeCommand", "QuantoCommand"]


class QuantizeCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """`optimum-cli quanto quantize`."""

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Adds the arguments."""
        from optimum.quanto.commands.quantize import add_arguments

        add_arguments(parser)

    def run(self) -> None:
        """Runs the command."""
        from optimum.quanto.commands.quantize import run

        run(self.args)


class QuantoCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """`optimum-cli quanto`."""

    COMMAND = CommandInfo(name="quanto", help="Quantize models of Hugging Face.")
    SUBCOMMANDS = (CommandInfo(name="quantize", help="Quantize a model.", subcommand_class=QuantizeCommand),)


REGISTER_COMMANDS = [QuantoCommand]
