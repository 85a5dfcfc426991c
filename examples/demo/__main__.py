# SPDX-License-Identifier: Apache-2.0
"""`python -m demo`: quantizes SmolLM2-135M, prints a table and writes a chart."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .requirements import MissingPackageError, require


def arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little text and few tokens: a check, not a measurement")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of the float model")
    parser.add_argument("--keep", action="store_true", help="keep the saved models (0.7 GB)")
    parser.add_argument("--prompt", default=None, help="what the models continue")
    options = parser.parse_args(command_line)
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    return options


def main() -> int:
    options = arguments()
    # All comes from an installed package: nothing may ask a model hub, and no library needs its own progress bars.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        require("torch", "quanto", "rich", "matplotlib", "transformers")
        from .run import run

        return run(options)
    except MissingPackageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
