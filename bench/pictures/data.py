# SPDX-License-Identifier: Apache-2.0
"""Pictures that packages on PyPI carry, from -1 to 1."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["HELD_OUT", "digits", "photograph"]

#: of the digits, the last so many are never trained on.
HELD_OUT = 297


def photograph() -> Tensor:
    """`[3, height, width]`: Grace Hopper, from matplotlib."""
    from matplotlib import cbook, image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = torch.tensor(image.imread(file))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def digits() -> tuple[Tensor, Tensor]:
    """The 1797 handwritten digits of scikit-learn (UCI, CC BY 4.0): pictures `[1797, 1, 8, 8]` and labels.

    The file is read, scikit-learn is not imported: `pip install --no-deps scikit-learn` is enough.

    Raises:
        FileNotFoundError: if scikit-learn is not installed.
    """
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the digits lie in scikit-learn: pip install --no-deps scikit-learn")
    path = Path(next(iter(found.submodule_search_locations))) / "datasets" / "data" / "digits.csv.gz"
    rows = gzip.decompress(path.read_bytes()).decode().split()
    table = torch.tensor([[float(cell) for cell in row.split(",")] for row in rows])
    return table[:, :64].reshape(-1, 1, 8, 8) / 8 - 1, table[:, 64].long()
