# SPDX-License-Identifier: Apache-2.0
"""Sounds from WAV files, at the rate that a model hears at."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["read_sound", "resample"]

#: zero crossings of the filter on each side
WIDTH = 16


def read_sound(path: Path, rate: int) -> Tensor:
    """One channel of a WAV file of 16-bit samples, float32 `[n]` from -1 to 1, at `rate` per second.

    Raises:
        ValueError: if the file is of another kind.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, own = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = bytearray(file.readframes(file.getnframes()))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no WAV file: {error}") from None
    if width != 2 or not data:
        raise ValueError(f"{path}: samples must have 16 bits, and there must be some; these have {8 * width}")
    samples = torch.frombuffer(data, dtype=torch.int16).float().div(2**15).view(-1, channels).mean(-1)
    return samples if own == rate else resample(samples, own, rate)


def resample(samples: Tensor, old: int, new: int) -> Tensor:
    """Changes the rate by a windowed sinc filter, evaluated at each new sample: float32 `[n]` to `[ceil(n new / old)]`.

    Frequencies above half of the lower rate are taken out.
    """
    common = math.gcd(old, new)
    old, new = old // common, new // common
    cut = min(old, new) / old  # of the old rate's half
    reach = math.ceil(WIDTH / cut)
    offsets = torch.arange(-reach, reach + old + 1, dtype=torch.float64)
    # new sample j of a period lies at j * old / new old samples: one filter for each of the `new` positions
    time = offsets[None, :] - torch.arange(new, dtype=torch.float64)[:, None] * old / new
    window = torch.cos(time * cut / WIDTH * math.pi / 2).square() * (time.abs() * cut < WIDTH)
    filters = (cut * torch.sinc(time * cut) * window).float()
    padded = nn.functional.pad(samples, (reach, reach + 2 * old))
    out = nn.functional.conv1d(padded.view(1, 1, -1), filters.unsqueeze(1), stride=old)[0]
    return out.T.flatten()[: -(-len(samples) * new // old)]
