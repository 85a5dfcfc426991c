# SPDX-License-Identifier: Apache-2.0
"""Times the kernels of a backend beside its peers: `nox -s bench -- kernels --backend cpu`.

A backend takes part by a module `bench/<backend>/kernels.py` with a function `main(arguments)`; its own options follow,
`--help` lists them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

BACKENDS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/kernels.py"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__, add_help=False)
    parser.add_argument("--backend", choices=BACKENDS, default="cpu")
    chosen, rest = parser.parse_known_args()
    importlib.import_module(f"bench.{chosen.backend}.kernels").main(rest)


if __name__ == "__main__":
    sys.exit(main())
