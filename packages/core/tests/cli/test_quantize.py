# SPDX-License-Identifier: Apache-2.0
"""`quanto quantize` from the words to the folder."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import quanto
from quanto.algorithms import GPTQ, Pipeline
from quanto.cli import main
from quanto.cli.calibrated import Job
from quanto.serialization.foreign import open_model


def test_a_folder_is_streamed_and_completed(language_model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["quantize", str(language_model), "-o", str(out), "--weights", "int4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["modules"], result["schemes"], result["formats"]) == (4, {"int4": 4}, ["bytes"])
    assert (out / "completed").read_text() == "4"
    model, _ = open_model(out)
    expected = quanto.freeze(quanto.quantized(open_model(language_model)[0], "int4", include="blocks.*"))
    ids = torch.arange(64).view(2, 32)
    assert torch.equal(model(ids), expected(ids))


def test_a_lone_file_and_rules(language_model: Path, tmp_path: Path, capsys) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"pattern": "*.0", "weights": "int8"}]))
    words = ["quantize", str(language_model / "model.safetensors"), "-o", str(tmp_path / "out"), "--rules", str(rules)]
    assert main(words) == 0
    assert "2 modules quantized" in capsys.readouterr().out


def test_data_calibrates(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int4", "--algorithm", "gptq", "--json"]
    assert main([*words, "--data", str(text), "--length", "64", "--samples", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"] == 4
    calibrated, _ = open_model(out)
    original, encode = open_model(language_model)
    rounded = quanto.freeze(quanto.quantized(original, "int4", include="blocks.*"))
    ids = encode(text.read_text())[:512].view(1, -1)
    with torch.no_grad():
        errors = [(model(ids) - original(ids)).square().mean() for model in (calibrated, rounded)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to quantize to"),
        (["--weights", "int9"], "int9"),
        (["--group-size", "32"], "--group-size needs --weights"),
        (["--weights", "int8", "--exclude", "nothing"], "matches no weight"),
        (["--weights", "int8", "--rules", "missing.json"], "No such file"),
        (["--weights", "int8", "--shard-size", "big"], "shard_size"),
        (["--weights", "int8", "--data", "missing.txt"], "'missing.txt' does not exist"),
        (["--weights", "int8", "--algorithm", "gptq,magic", "--data", __file__], "unknown step 'magic'"),
        (["--weights", "int8", "--algorithm", "magic"], "unknown algorithm 'magic'"),
        (["--weights", "int8", "--samples", "0"], "'--samples'"),
        (["--weights", "w8a8-static"], "static activations need sample data"),
        (["--weights", "int8", "--length", "64"], "--length is for steps that run the model"),
        (["--weights", "int8", "--algorithm", "gptq", "--length", "200000"], "the model takes 100000 tokens"),
        (["--weights", "int8", "--data", "latin.txt"], "latin.txt, line 1: not UTF-8"),
    ],
)
def test_errors_are_one_line_and_status_2(
    language_model: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6\xdfe")
    monkeypatch.chdir(tmp_path)
    assert main(["quantize", str(language_model), "-o", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("quanto: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_finished_folder_is_not_overwritten(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    words = ["quantize", str(language_model), "-o", str(tmp_path / "out"), "--weights", "int8"]
    assert main(words) == 0
    assert main(words) == main([*words, "--data", str(text)]) == 2
    assert capsys.readouterr().err.count("holds a quantized model already") == 2
    assert main(["quantize", str(tmp_path / "out"), "-o", str(tmp_path / "again"), "--weights", "int4"]) == 2
    assert "holds a quantized model: give the float one" in capsys.readouterr().err


def test_static_activations_are_calibrated(language_model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "w8a8-static", "--data", str(text)]
    assert main([*words, "--length", "64", "--samples", "4"]) == 0
    model, encode = open_model(out)
    scales = [m.input_scale for m in model.modules() if getattr(m, "quantizes_input", False)]
    assert len(scales) == 4
    assert all(scale is not None and scale > 0 for scale in scales)
    with torch.no_grad():
        assert model(encode(text.read_text())[:64].view(1, -1)).isfinite().all()


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_files_of_another_model_are_not_overwritten(
    language_model: Path, text: Path, tmp_path: Path, capsys, name: str, calibrated: bool
) -> None:
    (language_model / "README.md").write_text("float")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    (out / "notes").write_text("also mine")
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int8"]
    assert main([*words, "--data", str(text)] if calibrated else words) == 2
    assert f"{out / name} is of another model: remove it" in capsys.readouterr().err
    assert {p.name: p.read_text() for p in out.iterdir()} == {name: "mine", "notes": "also mine"}


def test_a_calibration_goes_on_after_a_kill(
    language_model: Path, text: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int4", "--data", str(text)]
    words += ["--length", "64", "--samples", "4"]

    seen: list[str] = []
    run = Pipeline.run

    def watched(self: Pipeline, model: torch.nn.Module, *args: object, **options: object) -> object:
        apply = GPTQ.apply
        with monkeypatch.context() as patched:
            patched.setattr(GPTQ, "apply", lambda step, block: (seen.append(block.name), apply(step, block)))
            return run(self, model, *args, **options)

    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "run", watched)
    for module, name in (("serialization.save", "save"), ("serialization.foreign", "complete")):
        with monkeypatch.context() as patched:
            patched.setattr(import_module(f"quanto.{module}"), name, killed)
            assert main(words) == 130
        assert main(["quantize", str(language_model), "-o", str(out), "--weights", "int8", "--data", str(text)]) == 2
    assert main(words) == 0
    assert sorted(seen) == sorted(set(seen)), "no block is done twice"
    assert not [p.name for p in out.iterdir() if p.name in ("quanto.unfinished", "quanto.calibration")]
    assert (out / "completed").read_text() == "4"
    assert main(words) == 2


def test_a_weight_that_cannot_be_quantized_leaves_nothing(language_model: Path, tmp_path: Path, capsys) -> None:
    file, out = language_model / "model.safetensors", tmp_path / "out"
    tensors = load_file(file)
    broken = next(name for name in tensors if name.startswith("blocks.1") and name.endswith(".weight"))
    tensors[broken][0] = torch.nan
    save_file(tensors, file)
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int8"]
    assert main(words) == 2
    assert f"{broken} holds NaN" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--exclude", broken.removesuffix(".weight")]) == 0


def test_one_process_at_a_time(language_model: Path, text: Path, tmp_path: Path, capsys) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int8"]
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for more in ([], ["--data", str(text)]):
        assert main([*words, *more]) == 2
        assert "is being written by another call" in capsys.readouterr().err
    os.close(handle)
    assert main(words) == 0


def test_sub_folders_without_weights_are_copied(language_model: Path, tmp_path: Path) -> None:
    for name in ("1_Pooling/config.json", "onnx/model.onnx", ".cache/x", "out/old", "killed/quanto.unfinished"):
        (language_model / name).parent.mkdir()
        (language_model / name).write_text("{}")
    out = language_model / "out"
    (out / "old").unlink()
    assert main(["quantize", str(language_model), "-o", str(out), "--weights", "int8"]) == 0
    assert (out / "1_Pooling" / "config.json").is_file()
    assert not [name for name in ("onnx", ".cache", "out", "killed") if (out / name).exists()]


def test_a_call_that_fails_takes_nothing_along(
    language_model: Path, text: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = [
        "quantize",
        str(language_model),
        "-o",
        str(out),
        "--weights",
        "int4",
        "--data",
        str(text),
        "--length",
        "64",
    ]

    def broken(*args: object) -> None:
        raise OSError("no such disk")

    with monkeypatch.context() as patched:
        patched.setattr(import_module("quanto.serialization.foreign"), "open_model", broken)
        assert main(words) == 2
    assert not out.exists(), "another call may have other options"
    (out / "quanto.calibration").mkdir(parents=True)
    (out / "quanto.calibration" / "mine.pt").write_text("mine")
    assert main(words) == 2
    assert "quanto.calibration is of another run" in capsys.readouterr().err
    assert (out / "quanto.calibration" / "mine.pt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_texts_from_a_pipe_and_weights_that_changed(language_model: Path, text: Path, tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(text.read_text()))
    writer.start()
    words = ["quantize", str(language_model), "-o", str(out), "--weights", "int8", "--length", "64"]
    assert main([*words, "--data", str(pipe)]) == 0
    writer.join()
    pipeline = Pipeline("gptq")
    job = Job(language_model, out, quanto.Scheme("int8"), [], [], "5GB", text, text.read_text(), 4, 64, pipeline)
    before = job.identity()
    assert before == replace(job, pipeline=Pipeline("gptq")).identity()
    tensors = load_file(language_model / "model.safetensors")
    save_file(tensors | {"more": torch.zeros(1)}, language_model / "model.safetensors")
    assert job.identity() != before
