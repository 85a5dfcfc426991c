# SPDX-License-Identifier: Apache-2.0
"""Quantizing a checkpoint without a model: tensor by tensor, in the memory of the largest one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._bytes import bytes_of, check_finite
from .._progress import track
from .._version import __version__
from ..nn.slot import PARTS, Slot
from ..scheme import Rule, Scheme
from ..tensor import quantize_tensor
from .folder import remove, replace_text, sync_folder, write_file
from .header import TensorInfo, build_header
from .manifest import FILE, Manifest
from .save import _aligned_first, _bytes, _split
from .sources import Source

__all__ = ["Weight", "begin", "choose", "convert", "copy_beside", "finish"]

JOURNAL = "quanto.unfinished"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Modules that are no linear layers though their weights have two dimensions, or are left floating by everyone.
_KEPT = re.compile(r".*emb.*|wte|wpe|lm_head|head|score|classifier|shared|router|gate|relative_attention_bias|output")
_BESIDE = re.compile(
    r".*(\.safetensors|\.safetensors\.index\.json|\.bin|\.bin\.index\.json|\.pt|\.pth|\.gguf|\.h5|\.msgpack|\.onnx|\.onnx_data)"
)


@dataclass(frozen=True)
class Weight:
    """A tensor that will be quantized."""

    name: str
    slot: Slot

    def parts(self, tensor: Tensor) -> dict[str, Tensor]:
        """Its parts by their names in the file.

        Raises:
            ValueError: if it holds what no code stands for.
        """
        check_finite(self.name, tensor)
        q = quantize_tensor(self.slot.rows(tensor), self.slot.scheme)
        made = zip(PARTS, (q.codes, q.scale, q.zero_point, q.global_scale), strict=True)
        return {f"{self.name}_{part}": t for part, t in made if t is not None}

    def infos(self) -> dict[str, TensorInfo]:
        """dtype and shape of the parts."""
        parts = self.parts(torch.empty(self.slot.shape, dtype=self.slot.dtype, device="meta"))
        return {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in parts.items()}


def choose(
    source: Source,
    scheme: Scheme | None,
    rules: Sequence[Rule] = (),
    exclude: Sequence[str] = (),
    layers: Mapping[str, str] | None = None,
) -> dict[str, Weight]:
    """Which tensors are quantized, and how.

    Args:
        source: a float checkpoint.
        scheme: of modules that no rule matches; None leaves them floating.
        rules: the first that matches a module's name decides.
        exclude: globs of modules that stay floating.
        layers: arrangement by module name of what the scheme is for, where the architecture is known; None takes 2-D
            weights whose name is not that of an embedding, a head or a router.

    Raises:
        ValueError: if nothing is quantized, a rule or a glob matches nothing, or a rule names what has no such weight.
    """
    chosen: dict[str, Weight] = {}
    names = [name.removesuffix(".weight") for name in source.infos if name.endswith(".weight")]
    for one in rules:
        if not any(one.matches(name, _NOTHING) for name in names):
            pattern = getattr(one.pattern, "pattern", one.pattern)
            raise ValueError(f"the rule {pattern!r} matches no weight of {source.folder}; {_like(names)}")
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude={pattern!r} matches no weight of {source.folder}")
    for name in names:
        info = source.infos[f"{name}.weight"]
        rule = next((r for r in rules if r.matches(name, _NOTHING)), None)
        wanted = scheme if rule is None else rule.scheme
        if wanted is None or any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        known = name in layers if layers is not None else _is_linear(name, info)
        if rule is None and not known:
            continue
        arrangement = (layers or {}).get(name, "rows")
        if info.dtype not in _FLOATS or (len(info.shape) != 2 and arrangement == "rows"):
            if rule is None or not _is_wide(rule.pattern):
                what = f"{info.dtype} {list(info.shape)}"
                raise ValueError(f"{name}.weight is {what}: only floating weights of two dimensions can be quantized")
            continue
        chosen[f"{name}.weight"] = Weight(f"{name}.weight", Slot(wanted, info.shape, info.dtype, arrangement))
    if not chosen:
        where = next(iter(source.files.values()), source.folder) if source.lone else source.folder
        raise ValueError(f"{where}: nothing to quantize among its weights ({len(names)})")
    for weight in {str(w.slot.scheme.to_dict()): w for w in chosen.values()}.values():
        columns = weight.slot.rows_shape()[-1]
        quantize_tensor(torch.zeros(1, columns), weight.slot.scheme)  # an algorithm may refuse: before the first file
    return chosen


def _like(names: Sequence[str]) -> str:
    return f"names are like {names[0]!r}" if names else "it holds no tensor named *.weight"


def _is_wide(pattern: object) -> bool:
    """Whether a pattern is one that speaks of many modules, of which some may not fit."""
    return not isinstance(pattern, str) or any(c in pattern for c in "*?[")


def _is_linear(name: str, info: TensorInfo) -> bool:
    if len(info.shape) != 2 or info.dtype not in _FLOATS:
        return False
    return _KEPT.fullmatch(name.rpartition(".")[2].lower()) is None


def convert(
    source: Source,
    target: str | os.PathLike[str],
    chosen: Mapping[str, Weight],
    *,
    shard_size: int | str = "5GB",
    progress: bool | None = None,
) -> Manifest:
    """Writes a quantized checkpoint that `quanto.load` reads.

    One weight at a time is in memory, and the scales of one shard. Shards are finished one by one, and `quanto.json`
    comes last: after a kill the same call goes on behind the last whole shard. Files beside the tensors of a folder,
    such as `config.json` and tokenizers, are copied.

    Args:
        source: a float checkpoint.
        target: a folder, created if it does not exist.
        chosen: of `choose`.
        shard_size: largest size of a file, in bytes or as in `"500MB"`.
        progress: whether to show a progress bar; None shows one in a terminal.

    Raises:
        ValueError: if the target is the source's folder, holds a finished model, or an unfinished one of other options,
            or files of another model.
    """
    folder, limit = Path(target), _bytes(shard_size)
    infos: dict[str, TensorInfo] = {}
    origin: dict[str, str] = {}
    for name, info in source.infos.items():
        made = chosen[name].infos() if name in chosen else {name: info}
        for part in made:
            if part in origin or (part != name and part in source.infos):
                raise ValueError(f"{source.files[name]}: {name!r} would be stored as {part!r}, which is taken")
        infos |= made
        origin |= dict.fromkeys(made, name)
    shards = [_aligned_first(shard, infos) for shard in _split(infos, limit)]
    files = [f"quanto-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    _begin(folder, source, chosen, shards)
    bar = iter(track(source.infos, "quantize", enabled=progress))
    sizes: list[int] = []
    for file, names in zip(files, shards, strict=True):
        header = build_header({name: infos[name] for name in names})
        size = len(header) + sum(infos[name].nbytes for name in names)
        path = folder / file
        if not (path.is_file() and path.stat().st_size == size):
            try:
                written = write_file(path, _contents(header, names, origin, source, chosen, bar))
            except ValueError:  # a weight can't be quantized: the next call will have other options
                _abandon(folder, file, whole=not sizes)
                raise
            assert written == size, path
        else:
            for _ in {origin[name] for name in names}:
                next(bar, None)
        sizes.append(size)
    next(bar, None)  # ends the bar
    sync_folder(folder)
    if not source.lone:
        copy_beside(source.folder, folder)
    index = {name: i for i, names in enumerate(shards) for name in names}
    entries = {name.removesuffix(".weight"): _entry(weight) for name, weight in chosen.items()}
    return Manifest(entries, tuple(zip(files, sizes, strict=True)), index, {}, {})


def _abandon(folder: Path, file: str, whole: bool) -> None:
    """Removes a shard that was begun, and of a folder without a finished one the rest."""
    remove(folder, [file])
    if whole:
        (folder / JOURNAL).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else lies in it
            folder.rmdir()


def copy_beside(source: Path, folder: Path) -> None:
    """Copies what lies beside the tensors: configuration and tokenizers, but no weights of any format."""
    for name in _lies_beside(source, folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def begin(source: Path, folder: Path, call: str, beside: bool = True) -> None:
    """Makes a folder for a quantized model, or recognizes that of the same call, which a kill left unfinished.

    Args:
        source: where the float model is.
        folder: for the quantized one.
        call: stands for the options.
        beside: whether `copy_beside` will follow.

    Raises:
        ValueError: if the folder is the source's, or holds a finished model, an unfinished one of another call, or
            files of another one.
    """
    journal = folder / JOURNAL
    if folder.resolve() == source.resolve():
        raise ValueError(f"{folder} is where the float model is: name another folder for the output")
    if journal.exists():
        if journal.read_text(encoding="utf-8").strip() != call:
            raise ValueError(f"{folder} holds an unfinished model of another source or options: remove it")
        return
    if (folder / FILE).exists():
        raise ValueError(f"{folder} holds a quantized model already: remove it, or name another folder")
    _check_room(source, folder, beside)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(journal, call + "\n")


def _check_room(source: Path, folder: Path, beside: bool) -> None:
    """Makes sure that a folder has nothing that would be overwritten, or that readers would take for the model."""
    there = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    weights = [path for path in there if _BESIDE.fullmatch(path.name)]
    copied = [(source / name, folder / name) for name in _lies_beside(source, folder)] if beside else []
    others = [
        new for old, new in copied if new.exists() and (not new.is_file() or new.read_bytes() != old.read_bytes())
    ]
    if weights or others:
        first = [*weights, *others][0]
        raise ValueError(f"{first} is of another model: remove it, or name another folder for the output")


def _lies_beside(source: Path, folder: Path) -> list[Path]:
    """What to copy, relative to the source: files, and sub-folders without weights, as of sentence-transformers."""
    found = []
    for path in sorted(source.iterdir()):
        if path.name.startswith(("quanto.", ".")):
            continue
        files = [path] if path.is_file() else [f for f in sorted(path.rglob("*")) if f.is_file()]
        files = [file for file in files if folder.resolve() not in file.resolve().parents]
        if not any(_BESIDE.fullmatch(file.name) or file.name in (FILE, JOURNAL) for file in files):
            found += [file.relative_to(source) for file in files]
    return found


def finish(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Commits what `convert` wrote."""
    replace_text(Path(folder) / FILE, manifest.dump())
    (Path(folder) / JOURNAL).unlink(missing_ok=True)


def _entry(weight: Weight) -> dict[str, Any]:
    slot = weight.slot
    described = {
        "arrangement": slot.arrangement,
        "block_size": list(slot.scheme.block_size(slot.rows_shape())),
        "dtype": str(slot.dtype).removeprefix("torch."),
        "shape": list(slot.shape),
    }
    return {"scheme": slot.scheme.to_dict(), "parameters": {"weight": described}}


def _begin(folder: Path, source: Source, chosen: Mapping[str, Weight], shards: list[list[str]]) -> None:
    """Makes the folder, or recognizes the unfinished one of the same call."""
    what = {
        "version": __version__,
        "source": [
            (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in dict.fromkeys(source.files.values())
        ],
        "weights": {name: [w.slot.scheme.to_dict(), w.slot.arrangement] for name, w in chosen.items()},
        "shards": shards,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    begin(source.folder, folder, digest, beside=not source.lone)


def _contents(
    header: bytes,
    names: list[str],
    origin: Mapping[str, str],
    source: Source,
    chosen: Mapping[str, Weight],
    bar: Iterator[str],
) -> Iterator[bytes | memoryview]:
    yield header
    made: dict[str, Tensor] = {}  # parts whose turn has not come: scales that are stored behind all codes
    for name in names:
        if name not in made:
            first = origin[name]
            next(bar, None)
            tensor = source.read(first)
            made |= chosen[first].parts(tensor) if first in chosen else {first: tensor}
        tensor = made.pop(name).contiguous()
        if tensor.numel():
            yield bytes_of(tensor)


_NOTHING = nn.Identity()
