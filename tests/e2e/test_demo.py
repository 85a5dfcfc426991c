# SPDX-License-Identifier: Apache-2.0
"""The parts of examples/demo on a tiny random Llama: measured, reported, saved, reloaded in a fresh process."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

pytest.importorskip("transformers", reason="the demo's model is a transformers model: pip install transformers")
pytest.importorskip("matplotlib", reason="the demo draws a chart: pip install matplotlib")
rich_console = pytest.importorskip("rich.console", reason="the demo prints a table: pip install rich")

# Linear layers of the tiny model, [out, in]: as in SmolLM2, 128 divides some of the widths and not others.
LAYERS = 2 * [(192, 192), (64, 192), (64, 192), (192, 192), (256, 192), (256, 192), (192, 256)]
WEIGHTS = sum(out * width for out, width in LAYERS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama in bf16, tied embeddings, a width of 192."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One row per scheme, and the folder with the saved models."""
    from demo.measure import Workload, measure_float, measure_quantized
    from demo.model import load
    from demo.schemes import FLOAT, SCHEMES

    saved = tmp_path_factory.mktemp("saved")
    tokens = torch.randint(320, (4 * 64,), generator=torch.Generator().manual_seed(1))
    work = Workload(tokens=tokens, prompt=tokens[:5], block=64, generate=8, progress=False)
    rows = [measure_float(load(tiny, torch.bfloat16), work, saved / FLOAT)]
    for name, options in SCHEMES.items():
        rows.append(measure_quantized(load(tiny, torch.bfloat16), work, saved / name, name, options))
    return SimpleNamespace(rows=rows, saved=saved, work=work, by_name={row.scheme: row for row in rows})


@pytest.fixture(scope="module")
def reloaded(measured: SimpleNamespace, tiny: Path) -> dict[str, tuple[float, bool]]:
    """What a fresh process finds; before it starts, one of the expected logits of a copy is changed by one step."""
    from demo.measure import CHECK
    from demo.reload import reload_in_fresh_process

    other = measured.saved / "other"
    other.mkdir()
    for path in (measured.saved / "int4").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    expected = load_file(measured.saved / f"int4.{CHECK}")
    bits = expected["logits"].view(torch.int16)
    bits[0, -1, 7] ^= 1
    save_file(expected, measured.saved / f"other.{CHECK}")
    names = [row.scheme for row in measured.rows[1:]] + ["other"]
    return reload_in_fresh_process(tiny, [measured.saved / name for name in names], "bfloat16", torch.get_num_threads())


def test_size(measured: SimpleNamespace) -> None:
    by_name = measured.by_name
    assert by_name["float"].bits == 16
    assert (by_name["int8"].groups, by_name["float8"].groups) == ("row", "row")
    assert (by_name["int4"].groups, by_name["int2"].groups) == ("96, 128", "32")
    # What scales and zero points add: at least 16 and at most 64 bits for each group.
    rows = sum(out for out, _ in LAYERS)
    groups = {
        "int8": rows,
        "float8": rows,
        "int4": sum(out * width // (128 if width % 128 == 0 else 96) for out, width in LAYERS),
        "int2": WEIGHTS // 32,
    }
    for name, count in groups.items():
        codes = int(name[-1])
        assert 16 * count <= (by_name[name].bits - codes) * WEIGHTS <= 64 * count, name
    sizes = [by_name[name].file_bytes for name in ("int2", "int4", "int8", "float")]
    assert sizes == sorted(sizes)
    for name, row in by_name.items():
        assert row.file_bytes == sum(path.stat().st_size for path in (measured.saved / name).iterdir())


def test_perplexity_has_its_convention(measured: SimpleNamespace) -> None:
    baseline = measured.by_name["float"].perplexity.nll
    assert measured.by_name["int8"].perplexity.nll == pytest.approx(baseline, abs=0.05)
    for row in measured.rows:
        assert (row.perplexity.tokens, row.perplexity.blocks) == (4 * 63, 4)
        assert "4 blocks of 64 tokens, no overlap" in row.perplexity.convention


def test_more_bits_are_closer_to_the_float_model(measured: SimpleNamespace) -> None:
    """On the logits: the perplexity of a random model on random tokens says nothing."""
    from demo.measure import CHECK

    logits = {name: load_file(measured.saved / f"{name}.{CHECK}")["logits"].float() for name in measured.by_name}
    noise = {name: (each - logits["float"]).square().mean().sqrt() for name, each in logits.items()}
    distance = {name: (each / logits["float"].std()).item() for name, each in noise.items()}
    assert 0 < distance["int8"] < distance["int4"] < distance["int2"]
    assert distance["int8"] < 0.1
    assert distance["float8"] < 0.2


def test_generation(measured: SimpleNamespace, tiny: Path) -> None:
    """The cached steps of `greedy` find what the model without a cache finds."""
    from demo.generate import greedy
    from demo.model import load

    model = load(tiny, torch.float32)
    prompt = measured.work.prompt
    generation = greedy(model, prompt, 8)
    whole = torch.cat([prompt, torch.tensor(generation.tokens)])
    with torch.no_grad():
        likeliest = model(whole.unsqueeze(0)).logits[0].argmax(-1)
    assert generation.tokens == likeliest[len(prompt) - 1 : -1].tolist()
    assert generation.per_second > 0
    assert len(greedy(model, prompt, 200, seconds=0.0).tokens) == 4
    with pytest.raises(ValueError, match="at least 4"):
        greedy(model, prompt, 3)
    for row in measured.rows:
        assert len(row.continuation) == 8
        assert row.per_second > 0


def test_logits_after_reloading_are_bit_equal(reloaded: dict[str, tuple[float, bool]]) -> None:
    assert {name: equal for name, (_, equal) in reloaded.items() if name != "other"} == dict.fromkeys(
        ("int8", "float8", "int4", "int2"), True
    )
    assert all(seconds > 0 for seconds, _ in reloaded.values())


def test_one_changed_bit_is_seen(reloaded: dict[str, tuple[float, bool]]) -> None:
    assert reloaded["other"][1] is False


def test_a_failing_process_is_reported(measured: SimpleNamespace, tiny: Path) -> None:
    from demo.reload import reload_in_fresh_process

    with pytest.raises(RuntimeError, match="nowhere"):
        reload_in_fresh_process(tiny, [measured.saved / "nowhere"], "bfloat16", 1)


def test_other_layers_than_meant_are_an_error(tiny: Path) -> None:
    from demo.measure import _stored
    from demo.model import load

    model = load(tiny, torch.bfloat16)
    with pytest.raises(RuntimeError, match="quantized other layers than meant"):
        _stored(model, {"model.layers.0.mlp.up_proj": torch.Size((256, 192))})


def test_table_fits_a_narrow_terminal(measured: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    from demo.report import table

    rows = [replace(row, quantize_s=12.34, save_s=1.23, load_s=0.12) for row in measured.rows]
    # The widest row that is to be expected.
    rows[-1] = replace(rows[-1], perplexity=replace(rows[-1].perplexity, value=rows[0].perplexity.value * 12345))
    rich_console.Console(width=80).print(table(rows, "title"))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    shown = {line.split()[0]: line for line in lines if line.strip()}
    assert {row.scheme for row in rows} <= shown.keys()
    assert "×12,345" in shown["int2"]
    assert "96, 128" in shown["int4"]
    assert shown["float"].split()[1:5] == ["–", "16.00", f"{rows[0].file_bytes / 1e6:.0f}", _value(rows[0])]


def _value(row: Any) -> str:
    return f"{row.perplexity.value:,.2f}"


def test_notes_say_what_the_figures_hide(measured: SimpleNamespace) -> None:
    from demo.report import notes

    text = "\n".join(notes(measured.rows, "these words", "and those."))
    for words in ("these words", "and those.", "second quantization", "Q4_1", "576", "int2"):
        assert words in text
    assert "second quantization" not in "\n".join(notes(measured.rows[:2], "", ""))


def test_figures_and_chart(measured: SimpleNamespace, tmp_path: Path) -> None:
    from demo.chart import draw
    from demo.report import write_json
    from PIL import Image

    write_json(measured.rows, tmp_path / "demo.json", {"threads": 1})
    figures = json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))
    assert figures["threads"] == 1
    assert [row["scheme"] for row in figures["rows"]] == [row.scheme for row in measured.rows]
    assert figures["rows"][0]["perplexity"]["value"] == measured.rows[0].perplexity.value

    draw(measured.rows, tmp_path / "demo.png", title="title", caption="caption")
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (1650, 825)
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 20) if count > 500}
    assert {(0, 0, 0), (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)} <= colours


@pytest.mark.parametrize("worst", [1.0, 2.0, 1e6, math.inf])
def test_chart_of_any_perplexity(measured: SimpleNamespace, tmp_path: Path, worst: float) -> None:
    """Equal to the float model, on the scale, far off it, and infinite."""
    from demo.chart import draw

    value = measured.rows[0].perplexity.value
    rows = [replace(row, perplexity=replace(row.perplexity, value=value)) for row in measured.rows]
    rows[-1] = replace(rows[-1], perplexity=replace(rows[-1].perplexity, value=value * worst))
    draw(rows, tmp_path / "demo.png", title="title", caption="caption")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
