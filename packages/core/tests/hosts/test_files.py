# SPDX-License-Identifier: Apache-2.0
"""Checks of checkpoint files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quanto.hosts.files import check_files, where_is


def test_a_whole_file_is_found_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert check_files([path]) == [str(path)]
    assert where_is(["x"], [str(path)]) == str(path)
    assert where_is(["y"], [str(path)]) == str(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated or damaged"):
        check_files([path])
