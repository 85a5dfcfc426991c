# SPDX-License-Identifier: Apache-2.0
"""Writing into a folder so that a kill at any moment leaves it loadable.

Shards of a save get names that no earlier save in the folder used. The JSON that names them is replaced in one step,
and that step is the commit: before it the folder is the old model, after it the new one. What the JSON does not name,
the old shards and the leftovers of a killed save, is removed afterwards.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["collect_garbage", "commit", "new_names", "sync"]

_SHARD = re.compile(r"model(?:-g(\d+))?-\d{5}-of-\d{5}\.safetensors")
_PARTIAL = ".partial"


def new_names(folder: Path, count: int) -> list[str]:
    """Names for `count` shards, of a generation that the folder has no file of."""
    used = {int(m[1] or 1) for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name.removesuffix(_PARTIAL)))}
    generation = max(used, default=0) + 1
    tag = "" if generation == 1 else f"-g{generation}"
    return [f"model{tag}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit(folder: Path, name: str, text: str) -> None:
    """Replaces a small file in one step."""
    partial = folder / f"{name}{_PARTIAL}"
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, folder / name)
    sync(folder)


def collect_garbage(folder: Path, keep: set[str]) -> None:
    """Removes shards that are not in `keep`, and unfinished files; nothing else in the folder is touched."""
    for path in folder.iterdir():
        bare = path.name.removesuffix(_PARTIAL)
        partial = bare != path.name
        if _SHARD.fullmatch(bare) and (partial or path.name not in keep):
            path.unlink(missing_ok=True)
