# SPDX-License-Identifier: Apache-2.0
"""Writing into a folder so that a kill at any moment leaves it loadable.

Shards of a save get names that no file in the folder has. The JSON that names them is replaced in one step, and that
step is the commit: before it the folder is the old model, after it the new one. What the JSON does not name, the old
shards and the leftovers of a killed save, is removed afterwards.

All names begin with `quanto`: a folder may hold the float model too, whose shards are called `model-…`, and those are
not ours to remove.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

from .errors import FormatError

__all__ = [
    "claimed",
    "collect_garbage",
    "is_plain",
    "locate",
    "locked",
    "new_names",
    "remove",
    "replace_text",
    "sync_folder",
    "write_file",
]

PARTIAL = ".partial"
_SHARD = re.compile(r"quanto(?:-g(\d+))?-\d{5,}-of-\d{5,}\.safetensors")
_OURS = re.compile(rf"(?:{_SHARD.pattern}|quanto\.json)")
_CHUNK = 2**26  # a single write of more than 2**31 - 4096 bytes is cut short by Linux
_held: ContextVar[frozenset[tuple[int, int]]] = ContextVar("_held", default=frozenset())
_RESERVED = re.compile(r"(?i:con|prn|aux|nul|com\d|lpt\d)\..*")  # devices, on Windows
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


def new_names(folder: Path, count: int) -> list[str]:
    """Names for `count` shards, of a generation that the folder has no file of."""
    used = {int(m[1] or 1) for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name.removesuffix(PARTIAL)))}
    generation = max(used, default=0) + 1
    tag = "" if generation == 1 else f"-g{generation}"
    return [f"quanto{tag}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> int:
    """Writes a file under a partial name, waits until it is on the disk, and renames it; returns its size."""
    partial, size = path.with_name(path.name + PARTIAL), 0
    partial.unlink(missing_ok=True)  # of a killed save; O_EXCL: a planted link is not followed
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), _CHUNK):
                rest = view[start : start + _CHUNK]
                while len(rest):
                    rest = rest[os.write(handle, rest) :]
            size += len(view)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(partial, path)
    return size


def replace_text(path: Path, text: str) -> None:
    """Replaces a small file in one step."""
    write_file(path, [text.encode("utf-8")])
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    if os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Lets one save after the other write to a folder, of whatever process; the lock ends with its holder.

    Without it two saves would take the same names, and one could remove what the other has just committed. Windows has
    no locks of folders, nor have some network file systems: there nothing is locked. Its holder may take it again.

    Args:
        folder: must exist.
        wait: whether to wait for another holder.

    Raises:
        ValueError: if another call writes to the folder, and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    found = os.fstat(handle)
    key, held = (found.st_dev, found.st_ino), _held.get()
    if key in held:
        os.close(handle)
        yield
        return
    token = _held.set(held | {key})
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(f"{folder} is being written by another call: wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        _held.reset(token)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may hold the handle too
        os.close(handle)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder if there is none, and keeps other processes out of it; one that stays empty is removed.

    Raises:
        ValueError: if another call writes to it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=False):
        try:
            yield
        finally:
            if made:
                with contextlib.suppress(OSError):  # it holds something
                    folder.rmdir()


def remove(folder: Path, names: Iterable[str]) -> None:
    """Removes what a failed save wrote."""
    for name in names:
        for path in (folder / name, folder / (name + PARTIAL)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def collect_garbage(folder: Path, keep: Iterable[str]) -> None:
    """Removes shards that are not in `keep`, and unfinished files; nothing else in the folder is touched.

    What cannot be removed, as on Windows a file that some process has mapped, is left to the next save.
    """
    keep = set(keep)
    for path in folder.iterdir():
        bare = path.name.removesuffix(PARTIAL)
        stale = _OURS.fullmatch(bare) if bare != path.name else _SHARD.fullmatch(bare) and path.name not in keep
        if stale:
            with contextlib.suppress(OSError):
                path.unlink()


def is_plain(name: object) -> bool:
    """Whether a name is that of a safetensors file right in a folder, on every system."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and not _RESERVED.fullmatch(name)


def locate(folder: Path, name: str) -> Path:
    """The path of a file in the folder.

    Raises:
        FormatError: if it is missing, no regular file, or a link out of the folder. Links to the blobs of a Hugging
            Face cache (`…/snapshots/<revision>` to `…/blobs`) are followed.
    """
    path = folder / name
    try:
        home, real = folder.resolve(strict=True), path.resolve(strict=True)
        allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
        if real.parent not in allowed:
            raise FormatError(f"{path} is a link that leaves its folder")
        if not real.is_file():
            raise FormatError(f"{path} is not a regular file")
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
        raise FormatError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return path
