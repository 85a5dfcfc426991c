# SPDX-License-Identifier: Apache-2.0
"""Names, links and left-overs of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import quanto
from quanto.serialization import FormatError
from quanto.serialization import folder as writing

Model = Callable[[], nn.Module]
SHARD = "quanto-00001-of-00001.safetensors"


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_names_never_repeat(tmp_path: Path) -> None:
    assert writing.new_names(tmp_path, 2) == ["quanto-00001-of-00002.safetensors", "quanto-00002-of-00002.safetensors"]
    (tmp_path / "quanto-00001-of-00002.safetensors.partial").touch()
    assert writing.new_names(tmp_path, 1) == ["quanto-g2-00001-of-00001.safetensors"]
    (tmp_path / "quanto-g41-00001-of-00001.safetensors").touch()
    assert writing.new_names(tmp_path, 1) == ["quanto-g42-00001-of-00001.safetensors"]


def test_only_own_files_are_removed(saved: Path, float_model: Model) -> None:
    theirs = [
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",  # the float model, as transformers names its shards
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "quanto.json.bak",
        "quanto-notes.txt",
        "my-quanto-00001-of-00001.safetensors",
        "download.partial",
    ]
    ours = [
        "quanto-g7-00001-of-00001.safetensors",
        "quanto-g8-00001-of-00001.safetensors.partial",
        "quanto.json.partial",
    ]
    for name in (*theirs, *ours):
        (saved / name).write_text(name)
    quanto.save(quanto.quantize(float_model(), "int8"), saved)
    assert _names(saved) == {*theirs, "quanto.json", "quanto-g9-00001-of-00001.safetensors"}
    assert all((saved / name).read_text() == name for name in theirs)


def test_saving_over_the_folder_a_model_is_mapped_from(saved: Path, float_model: Model, bits: Any) -> None:
    loaded = quanto.load(saved, float_model())
    before = bits(loaded)
    quanto.save(loaded, saved)
    assert bits(loaded) == before
    assert bits(quanto.load(saved, float_model())) == before
    assert _names(saved) == {"quanto.json", "quanto-g2-00001-of-00001.safetensors"}


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_folder_as_it_was(
    saved: Path, float_model: Model, bits: Any, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old = _names(saved), bits(quanto.load(saved, float_model()))
    model = quanto.quantize(float_model(), "int8")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            quanto.save(model, saved)
    assert _names(saved) == before
    assert bits(quanto.load(saved, float_model())) == old


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks of folders")
def test_saves_to_one_folder_wait_for_each_other(tmp_path: Path, float_model: Model, bits: Any) -> None:
    models = [quanto.freeze(quanto.quantize(float_model(), weights)) for weights in ("int8", "int4", "nf4")]

    def save(model: nn.Module) -> None:
        for _ in range(8):
            quanto.save(model, tmp_path)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(save, models))
    assert bits(quanto.load(tmp_path, float_model())) in [bits(model) for model in models]
    assert len(_names(tmp_path)) == 2, "the JSON and one shard"


def test_an_interrupt_after_the_commit_keeps_the_new_model(
    saved: Path, float_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if target.name == "quanto.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quanto.save(quanto.quantize(float_model(), "int8"), saved)
    assert quanto.load(saved, float_model())[0].scheme.weights == "int8"


def test_a_planted_link_is_not_written_through(saved: Path, float_model: Model, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (saved / "quanto.json.partial").symlink_to(tmp_path / "precious")
    quanto.save(quanto.quantize(float_model(), "int8"), saved)
    assert (tmp_path / "precious").read_text() == "precious"


def test_links_into_the_blobs_of_a_hugging_face_cache_are_followed(
    saved: Path, float_model: Model, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0f3c", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("quanto.json", SHARD):
        (saved / name).rename(blobs / f"sha-of-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"sha-of-{name}")
    assert quanto.load(snapshot, float_model())[0].frozen
    (tmp_path / "models--a--b" / SHARD).write_bytes((blobs / f"sha-of-{SHARD}").read_bytes())
    (snapshot / SHARD).unlink()
    (snapshot / SHARD).symlink_to(Path("../..") / SHARD)
    with pytest.raises(FormatError, match="leaves its folder"):
        quanto.load(snapshot, float_model())


def test_the_folder_itself_may_be_a_link(saved: Path, float_model: Model, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    assert quanto.load(tmp_path / "link", float_model())[0].frozen


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(saved: Path, float_model: Model) -> None:
    (saved / SHARD).unlink()
    os.mkfifo(saved / SHARD)
    with pytest.raises(FormatError, match="not a regular file"):
        quanto.load(saved, float_model())


@pytest.mark.parametrize(
    "name",
    ["a.safetensors", "quanto-g2-00001-of-00001.safetensors", "A_b.c-1.safetensors"],
)
def test_plain_names(name: str) -> None:
    assert writing.is_plain(name)


@pytest.mark.parametrize(
    "name",
    [
        None,
        7,
        ["a.safetensors"],
        "",
        ".safetensors",
        "a.bin",
        "../a.safetensors",
        "b/a.safetensors",
        "b\\a.safetensors",
        "/a.safetensors",
        "C:a.safetensors",
        "~a.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "a.safetensors\n",
        "ä.safetensors",
        "a\u202e.safetensors",
        "nul.safetensors",
        "COM1.x.safetensors",
        "a" * 300 + ".safetensors",
    ],
)
def test_names_that_are_not_plain(name: object) -> None:
    assert not writing.is_plain(name)
