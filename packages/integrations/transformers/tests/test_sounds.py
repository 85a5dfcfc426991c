# SPDX-License-Identifier: Apache-2.0
"""WAV files at another rate."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import pytest
import torch

from quanto_transformers.sounds import read_sound, resample


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 8000)])
def test_a_tone_stays_the_tone(old: int, new: int) -> None:
    samples = torch.sin(torch.arange(old // 2) * 2 * math.pi * 440 / old)
    expected = torch.sin(torch.arange(new // 2) * 2 * math.pi * 440 / new)
    found = resample(samples, old, new)
    assert found.shape == expected.shape
    middle = slice(new // 20, -new // 20)  # the ends see silence beyond
    torch.testing.assert_close(found[middle], expected[middle], atol=2e-3, rtol=0)


def test_what_the_new_rate_cannot_hold_is_taken_out() -> None:
    samples = torch.sin(torch.arange(48000) * 2 * math.pi * 15000 / 48000)
    assert resample(samples, 48000, 16000)[800:-800].abs().max() < 1e-2


def _write(path: Path, width: int, channels: int, data: bytes) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(data)
    return path


def test_channels_become_one(tmp_path: Path) -> None:
    data = torch.tensor([[16384, 0], [-16384, -16384]], dtype=torch.int16).numpy().tobytes()
    assert read_sound(_write(tmp_path / "a.wav", 2, 2, data), 16000).tolist() == [0.25, -0.5]


def test_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"text\.wav is no WAV file"):
        read_sound(tmp_path / "text.wav", 16000)
    with pytest.raises(ValueError, match="must have 16 bits"):
        read_sound(_write(tmp_path / "b.wav", 1, 1, b"123"), 16000)
