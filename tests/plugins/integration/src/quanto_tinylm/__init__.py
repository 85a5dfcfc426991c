# SPDX-License-Identifier: Apache-2.0
"""tinylm for quanto: its layer, its folders and a command."""

from pathlib import Path

from quanto.plugins import hookimpl

QUANTO_API = 1


@hookimpl
def register_modules(registry):
    registry.register_by_name("tinylm.Conv1D", "quanto_tinylm.layer:QConv1D")


@hookimpl
def register_formats(register):
    from .reader import Reader

    register("tinylm", Reader())


@hookimpl
def register_commands(app):
    from .reader import FILE

    @app.command("tinylm")
    def tinylm(folder: Path):
        """Say how many layers of a tinylm folder are quantized."""
        from safetensors import safe_open

        with safe_open(folder / FILE, framework="pt") as file:
            names = file.keys()
        print(sum(name.endswith(".int8") for name in names))
