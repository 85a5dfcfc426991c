# SPDX-License-Identifier: Apache-2.0
"""Malformed and hostile folders: each is refused with a sentence, and the model is left as it was."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import quanto
from quanto.serialization import FormatError

SHARD = "quanto-00001-of-00001.safetensors"


def _float() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 4))


def _saved(folder: Path) -> nn.Module:
    model = quanto.freeze(quanto.quantize(_float(), "int4", group_size=32))
    quanto.save(model, folder)
    return model


def _json(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / "quanto.json").read_text())
        change(data)
        (folder / "quanto.json").write_text(json.dumps(data))

    return damage


def _text(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "quanto.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def _whole(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "quanto.json").write_text(text) and None  # type: ignore[func-returns-value]


def _set(*path: Any, value: Any) -> Callable[[Path], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return _json(change)


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrites the shard's header, and the size in the JSON so that only the header lies."""

    def damage(folder: Path) -> None:
        raw = (folder / SHARD).read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        changed = change(header)
        text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
        text += b" " * (-(8 + len(text)) % 64)
        new = len(text).to_bytes(8, "little") + text + raw[8 + n :]
        (folder / SHARD).write_bytes(new)
        _set("shards", 0, "bytes", value=len(new))(folder)

    return damage


def _bytes(change: Callable[[bytes], bytes], honest: bool = True) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        new = change((folder / SHARD).read_bytes())
        (folder / SHARD).write_bytes(new)
        if honest:
            _set("shards", 0, "bytes", value=len(new))(folder)

    return damage


def _shifted(raw: bytes) -> bytes:
    """The header a byte longer, so that no tensor is where its dtype may be mapped."""
    n = int.from_bytes(raw[:8], "little")
    return (n + 1).to_bytes(8, "little") + raw[8 : 8 + n] + b" " + raw[8 + n :]


def _rename_tensor(header: dict[str, Any]) -> None:
    header["0.other"] = header.pop("0.weight_packed")


def _retype(name: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(fields)


def _double(header: dict[str, Any]) -> str:
    text = json.dumps(header)
    return text[:-1] + ', "0.bias": ' + json.dumps(header["0.bias"]) + "}"


def _link(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    os.replace(folder / SHARD, outside / SHARD)
    (folder / SHARD).symlink_to(outside / SHARD)


SCHEME = ("modules", "0", "scheme")
WEIGHT = ("modules", "0", "parameters", "weight")
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no json": (lambda f: (f / "quanto.json").unlink(), "holds no quanto.json"),
    "empty json": (_whole(""), "not sound JSON"),
    "cut json": (lambda f: _whole((f / "quanto.json").read_text()[:-40])(f), "not sound JSON"),
    "json array": (_whole("[]"), "must be a JSON object"),
    "binary json": (lambda f: (f / "quanto.json").write_bytes(b"\xff\xfe\x00"), "not sound JSON"),
    "deep json": (_whole("[" * 200_000), "not sound JSON"),
    "NaN": (_text('"version": 1', '"version": NaN'), "NaN is not JSON"),
    "double key": (_text('"version": 1', '"version": 1, "version": 1'), "'version' appears twice"),
    "double tensor": (_text('"0.bias": 0', '"0.bias": 0, "0.bias": 0'), "'0.bias' appears twice"),
    "other format": (_set("format", value="gguf"), "format must be 'quanto'"),
    "newer version": (_set("version", value=2), "newer than this quanto-core reads"),
    "version as text": (_set("version", value="1"), "version must be a positive integer"),
    "version true": (_set("version", value=True), "version must be a positive integer"),
    "no modules": (_json(lambda d: d.pop("modules")), "modules must be a JSON object"),
    "shards an object": (_set("shards", value={}), "shards must be a JSON array"),
    "path traversal": (_set("shards", 0, "file", value="../secret.safetensors"), "not a plain file name"),
    "absolute path": (_set("shards", 0, "file", value="/etc/x.safetensors"), "not a plain file name"),
    "windows path": (_set("shards", 0, "file", value="..\\x.safetensors"), "not a plain file name"),
    "drive": (_set("shards", 0, "file", value="C:x.safetensors"), "not a plain file name"),
    "NUL": (_set("shards", 0, "file", value="a\0.safetensors"), "not a plain file name"),
    "pickle": (_set("shards", 0, "file", value="model.bin"), "not a plain file name"),
    "link out": (_link, "leaves its folder"),
    "shard twice": (_json(lambda d: d["shards"].append(d["shards"][0])), "listed twice"),
    "size 2**63": (_set("shards", 0, "bytes", value=2**63), "bytes must be a size"),
    "size negative": (_set("shards", 0, "bytes", value=-1), "bytes must be a size"),
    "missing shard": (lambda f: (f / SHARD).unlink(), "cannot be read"),
    "truncated": (_bytes(lambda b: b[:-1], honest=False), "it is truncated"),
    "grown": (_bytes(lambda b: b + b"\0", honest=False), "not the same file"),
    "truncated, honest size": (_bytes(lambda b: b[:-1]), "does not fit its place"),
    "grown, honest size": (_bytes(lambda b: b + b"\0"), "belong to no tensor"),
    "header 2**63": (_bytes(lambda b: (2**63).to_bytes(8, "little") + b[8:]), "its header claims"),
    "header 2**64": (_bytes(lambda b: b"\xff" * 8 + b[8:]), "its header claims"),
    "header not JSON": (_header(lambda h: "{" * 50), "header is not sound JSON"),
    "header array": (_header(lambda h: "[]"), "must be a JSON object"),
    "doubled in header": (_header(_double), "'0.bias' appears twice"),
    "shape 2**63": (_header(_retype("0.bias", shape=[2**63])), "is not understood"),
    "shape negative": (_header(_retype("0.bias", shape=[-16])), "is not understood"),
    "shape product overflows": (_header(_retype("0.bias", shape=[2**32, 2**32])), "does not fit its place"),
    "offsets overlap": (
        _header(lambda h: h["0.bias"].update(data_offsets=h["1.bias"]["data_offsets"], shape=[4])),
        "overlaps another or leaves a gap",
    ),
    "offsets swapped": (_header(lambda h: h["0.bias"]["data_offsets"].reverse()), "does not fit its place"),
    "not aligned": (_bytes(_shifted), "is not aligned"),
    "unknown dtype": (_header(_retype("0.bias", dtype="X7")), "is not understood"),
    "no shape": (_header(lambda h: h["0.bias"].pop("shape")), "is not understood"),
    "tensor renamed": (_header(_rename_tensor), "'0.other' is not listed"),
    "tensor missing": (_json(lambda d: d["tensors"].update({"0.more": 0})), "'0.more' is missing"),
    "tensor nowhere": (_set("tensors", "0.bias", value=7), "in no listed shard"),
    "wrong dtype": (_header(_retype("0.weight_packed", dtype="I8")), "codes must be torch.uint8"),
    "wrong shape": (_header(lambda h: h["0.weight_packed"].update(shape=[32, 16])), "codes must be torch.uint8"),
    "scale shape": (_header(_retype("0.weight_scale", shape=[2, 16])), "scale must have shape"),
    "scale is int": (_header(_retype("0.weight_scale", dtype="I32")), "scale must be torch.float32 or"),
    "bias shape": (_header(_retype("0.bias", shape=[4, 4])), "0.bias"),
    "alias to nothing": (_set("aliases", "x", value="y"), "points to nothing"),
    "alias of a tensor": (_set("aliases", "0.bias", value="1.bias"), "both a tensor and an alias"),
    "alias is a list": (_set("aliases", "x", value=["0.bias"]), "points to nothing"),
    "unexpected alias": (_set("aliases", "x.y", value="0.bias"), "x.y"),
    "group 0": (_set(*SCHEME, "group_size", value=0), "group_size must be a positive integer"),
    "group negative": (_set(*SCHEME, "group_size", value=-32), "group_size must be a positive integer"),
    "group true": (_set(*SCHEME, "group_size", value=True), "group_size must be a positive integer"),
    "group 2**63": (_set(*SCHEME, "group_size", value=2**63), "group_size must be below 2**31"),
    "group 2**64": (_set(*SCHEME, "group_size", value=2**64), "group_size must be below 2**31"),
    "another group": (_set(*SCHEME, "group_size", value=64), "block_size of weight is [1, 64] in the model"),
    "unknown qtype": (_set(*SCHEME, "weights", value="int99"), "unknown qtype 'int99'"),
    "another qtype": (_set(*SCHEME, "weights", value="int2"), "codes must be torch.uint8"),
    "qtype a number": (_set(*SCHEME, "weights", value=4), "a qtype is a name"),
    "unknown field": (_set(*SCHEME, "colour", value=1), "unknown scheme fields colour"),
    "no scheme": (_set("modules", "0", value={}), "an object scheme"),
    "module a list": (_set("modules", "0", value=[]), "must be an object"),
    "unknown entry": (_set("modules", "0", "dtype", value="bfloat16"), "unknown fields 'dtype'"),
    "bad dtype": (_set(*WEIGHT, "dtype", value="int8"), "dtype must be one of"),
    "code as dtype": (_set(*WEIGHT, "dtype", value="load"), "dtype must be one of"),
    "bad arrangement": (_set(*WEIGHT, "arrangement", value="eval"), "arrangement must be one of"),
    "other arrangement": (
        _set(*WEIGHT, "arrangement", value="transposed"),
        "arrangement of weight is rows in the model",
    ),
    "other shape": (_set(*WEIGHT, "shape", value=[16, 128]), "shape of weight is [16, 64] in the model"),
    "block 0": (_set(*WEIGHT, "block_size", value=[1, 0]), "block_size must be an array of integers from 1"),
    "block 2**63": (_set(*WEIGHT, "block_size", value=[1, 2**63]), "block_size must be an array of integers from 1"),
    "no parameters": (_json(lambda d: d["modules"]["0"].pop("parameters")), "parameters are missing"),
    "parameter renamed": (
        _json(lambda d: d["modules"]["0"]["parameters"].update(w=d["modules"]["0"]["parameters"].pop("weight"))),
        "its quantized parameters are weight; the map says w",
    ),
    "raw a number": (_set("modules", "0", "raw", value=1), "raw must be true or false"),
    "unknown key": (_set("colour", value="red"), "unknown keys ['colour']"),
    "view of nothing": (_set("views", "x", value="complex64"), "is of no tensor"),
    "view as code": (_set("views", "0.bias", value="eval"), "of an unknown dtype"),
    "view of another dtype": (_set("views", "0.bias", value="float8_e4m3fnuz"), "does not hold float8_e4m3fnuz"),
    "another module": (_json(lambda d: d["modules"].update({"9": d["modules"].pop("0")})), "no such module"),
    "zero point missing": (_set(*SCHEME, "symmetric", value=True), "the scheme int4 g32 has no zero_point"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _saved(folder)
    damage, message = DAMAGE[name]
    damage(folder)
    model = _float()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FormatError) as caught:
        quanto.load(folder, model)
    assert message in str(caught.value)
    assert "model" in str(caught.value), "the file or folder must be named"
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    for model in (nn.Linear(64, 16), nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 5)), nn.Sequential(nn.ReLU())):
        kind = type(model)
        with pytest.raises(FormatError, match="does not fit the model"):
            quanto.load(tmp_path, model)
        assert type(model) is kind


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    (tmp_path / "quanto-00002-of-00002.safetensors").write_bytes((tmp_path / SHARD).read_bytes())
    entry = {"file": "quanto-00002-of-00002.safetensors", "bytes": (tmp_path / SHARD).stat().st_size}
    _json(lambda d: d["shards"].append(entry))(tmp_path)
    with pytest.raises(FormatError, match="in another shard too"):
        quanto.load(tmp_path, _float())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Flipped bytes of headers and JSON either change nothing that matters or are refused; never another error."""
    folder = tmp_path_factory.mktemp("fuzz")
    _saved(folder)
    path = folder / data.draw(st.sampled_from(["quanto.json", SHARD]))
    raw = bytearray(path.read_bytes())
    limit = len(raw) if path.suffix == ".json" else 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    model = _float()
    before = copy.deepcopy(model.state_dict())
    try:
        quanto.load(folder, model)
    except FormatError:
        assert [type(m) for m in model] == [nn.Linear, nn.Linear]
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
