# SPDX-License-Identifier: Apache-2.0
"""Checks of checkpoint files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quanto.hosts.files import check_files, where_is


def test_a_whole_file_is_found_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    assert check_files([path]) == [str(path)]
    assert where_is(["x"], [str(path)]) == str(path)
    assert where_is(["y"], [str(path)]) == str(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or damaged"):
        check_files([path])
