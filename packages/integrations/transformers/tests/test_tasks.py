# SPDX-License-Identifier: Apache-2.0
"""`quanto eval` on folders of classifiers, encoders and speech models."""

from __future__ import annotations

import json
import math
import wave
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quanto.cli import main
from quanto.serialization.foreign import open_task

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}

SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}


def tokenizer(folder: Path, size: int = 100) -> None:
    """One token for each printable character."""
    names = ["<pad>", "<unk>", *map(chr, range(32, 32 + size - 2))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_max_length=64)
    fast.save_pretrained(folder)


def lines(path: Path, examples: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, examples)))
    return path


def measured(capsys: Any, *words: object) -> dict[str, Any]:
    assert main(["eval", *map(str, words), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def quantized(folder: Path, weights: str, capsys: Any) -> Path:
    out = folder.parent / f"{folder.name}-{weights}"
    assert main(["quantize", str(folder), "-o", str(out), "--weights", weights]) == 0
    capsys.readouterr()
    return out


def bert(cls: str, folder: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=100, max_position_embeddings=64, num_labels=3, **SIZES)
    model = getattr(transformers, cls)(config).eval()
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def test_a_classifier_of_texts(tmp_path: Path, capsys) -> None:
    model = bert("BertForSequenceClassification", tmp_path / "float")
    texts = [f"number {i} of {i * i}" for i in range(20)]
    ids = [torch.tensor([[ord(c) - 30 for c in text]]) for text in texts]
    with torch.no_grad():
        classes = [int(model(input_ids=row).logits.argmax()) for row in ids]
    names = [f"LABEL_{c}" if i % 2 else c for i, c in enumerate(classes)]
    examples = [{"text": text, "label": name} for text, name in zip(texts, names, strict=True)]
    data = lines(tmp_path / "data.jsonl", examples)
    out = quantized(tmp_path / "float", "int8", capsys)
    found = measured(capsys, out, "--data", data, "--against", tmp_path / "float")
    assert found["accuracy of the reference"]["correct"] == 20  # padding changes nothing
    assert found["accuracy"]["correct"] == found["agreement"]["correct"] >= 18


@pytest.mark.parametrize("first", [False, True])
def test_an_encoder_pools_as_its_folder_says(tmp_path: Path, first: bool) -> None:
    model = bert("BertModel", tmp_path / "float")
    if first:
        (tmp_path / "float" / "1_Pooling").mkdir()
        (tmp_path / "float" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    task = open_task(tmp_path / "float")
    assert task is not None
    made = task.run([{"text": "a short one"}, {"text": "and one that is longer"}])
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([[ord(c) - 30 for c in "a short one"]])).last_hidden_state[0]
    torch.testing.assert_close(made[0], hidden[0] if first else hidden.mean(0), atol=1e-5, rtol=1e-5)


def test_an_encoder_retrieves(tmp_path: Path, capsys) -> None:
    bert("BertModel", tmp_path / "float")
    pairs = [{"query": f"{i} is what?", "document": f"{i} is what!"} for i in range(8)]
    data = lines(tmp_path / "data.jsonl", pairs)
    found = measured(capsys, tmp_path / "float", "--data", data, "--against", tmp_path / "float")
    assert found["retrieval"]["count"] == 8
    assert found["retrieval"] == found["retrieval of the reference"]
    assert found["similarity"]["cosine"] == pytest.approx(1)


def test_a_classifier_of_images(tmp_path: Path, capsys) -> None:
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=4, **SIZES)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "float")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "float")
    try:
        transformers.AutoImageProcessor.from_pretrained(tmp_path / "float")
    except ImportError as error:  # transformers 5.17 has it with torchvision only
        pytest.skip(str(error))
    for i in range(6):
        image.new("RGB", (40, 30), (40 * i, 255 - 40 * i, 30)).save(tmp_path / f"{i}.png")
    data = lines(tmp_path / "data.jsonl", [{"image": f"{i}.png"} for i in range(6)])
    out = quantized(tmp_path / "float", "int8", capsys)
    found = measured(capsys, out, "--data", data, "--against", tmp_path / "float")
    assert set(found) == {"agreement"}
    assert found["agreement"]["total"] == 6


def test_speech(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDE.items()}
    config = transformers.WhisperConfig(
        vocab_size=100, d_model=32, max_source_positions=50, max_target_positions=16, num_mel_bins=8, max_length=12,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=2, suppress_tokens=None,
        begin_suppress_tokens=None, **sides,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.no_timestamps_token_id = 99
    model.save_pretrained(tmp_path / "float")
    tokenizer(tmp_path / "float")
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.save_pretrained(tmp_path / "float")
    path = tmp_path / "float" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "WhisperProcessor"}))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        sound = [int(9000 * math.sin(i / 4)) for i in range(6000)]
        file.writeframes(torch.tensor(sound, dtype=torch.int16).numpy().tobytes())
    data = lines(tmp_path / "data.jsonl", [{"audio": "a.wav", "text": "hello there"}] * 2)
    found = measured(capsys, tmp_path / "float", "--data", data, "--against", tmp_path / "float")
    assert found["word errors"] == found["word errors of the reference"]
    assert found["word errors"]["words"] == 4


def test_what_is_missing_is_named(tmp_path: Path, capsys) -> None:
    bert("BertModel", tmp_path / "float")
    data = lines(tmp_path / "data.jsonl", [{"label": 1}])
    assert main(["eval", str(tmp_path / "float"), "--data", str(data), "--against", str(tmp_path / "float")]) == 2
    assert "needs examples with 'text'; one has 'label'" in capsys.readouterr().err
    for path in (tmp_path / "float").glob("tokenizer*"):
        path.unlink()
    assert main(["eval", str(tmp_path / "float"), "--data", str(data)]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
