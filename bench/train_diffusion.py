# SPDX-License-Identifier: Apache-2.0
"""Trains what `bench/diffusers.py` quantizes, because no package carries weights of a diffusers model.

`python -m bench.train_diffusion` (or `nox -s bench -- train_diffusion`) takes a few minutes of one core and writes to
`.cache/bench/pictures`: `unet`, a class-conditional DDPM (Ho et al. 2020) on handwritten digits; `classifier.pt`, a
convolutional net that reads digits; and `vae`, an autoencoder of photographs. Each is the same every time on one
machine.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from .pictures.data import HELD_OUT, digits, photograph

__all__ = ["FOLDER", "Classifier", "held_out_face", "trained"]

FOLDER = Path(__file__).parents[1] / ".cache" / "bench" / "pictures"
_FACE = slice(130, 258), slice(190, 318)  # rows and columns; training sees only what is above and below


class Classifier(nn.Module):
    """Reads digits; its layers are the features of the perceptual distance."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 64)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.head = nn.Linear(64 * 16, 10)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each convolution."""
        found = []
        for index, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            found.append(x)
            if index == 0:
                x = F.max_pool2d(x, 2)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[n, 10]` of pictures `[n, 1, 8, 8]`."""
        return self.head(self.features(x)[-1].flatten(1))


def _descend(model: nn.Module, steps: int, rate: float, loss: Any) -> None:
    """Minimizes `loss()` with AdamW and one cycle of rates, and keeps a moving average of the last tenth's weights."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    average = torch.optim.swa_utils.AveragedModel(model)
    for step in range(steps):
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step >= steps * 9 // 10:
            average.update_parameters(model)
        if step % 500 == 0:
            print(f"{type(model).__name__}: step {step} of {steps}, loss {value.item():.4f}", flush=True)
    model.load_state_dict(average.module.state_dict())
    model.eval()


def train_unet(steps: int) -> UNet2DModel:
    """Learns to predict the noise in digits, given which digit it is."""
    torch.manual_seed(0)
    x, labels = (t[:-HELD_OUT] for t in digits())
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=10,
    )
    scheduler = DDPMScheduler()

    def loss() -> Tensor:
        index = torch.randint(len(x), (64,))
        times, noise = torch.randint(1000, (64,)), torch.randn(64, 1, 8, 8)
        noisy = scheduler.add_noise(x[index], noise, times)
        return F.mse_loss(model(noisy, times, class_labels=labels[index]).sample, noise)

    _descend(model, steps, 2e-3, loss)
    return model


def train_classifier(steps: int) -> Classifier:
    """Learns to read digits."""
    torch.manual_seed(0)
    x, labels = (t[:-HELD_OUT] for t in digits())
    model = Classifier()

    def loss() -> Tensor:
        index = torch.randint(len(x), (64,))
        return F.cross_entropy(model(x[index] + 0.2 * torch.randn(64, 1, 8, 8)), labels[index])

    _descend(model, steps, 2e-3, loss)
    return model


def train_vae(steps: int, size: int = 48) -> AutoencoderKL:
    """Learns to reproduce pieces of the photograph."""
    torch.manual_seed(0)
    photo = photograph()
    parts = photo[:, : _FACE[0].start], photo[:, _FACE[0].stop :]
    model = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=8,
        norm_num_groups=8,
        layers_per_block=1,
    )

    def loss() -> Tensor:
        pieces = []
        for part in (parts[0], parts[1], parts[1]):
            for _ in range(2):
                y, x = (int(torch.randint(n - size, ())) for n in part.shape[1:])
                pieces.append(part[:, y : y + size, x : x + size])
        batch = torch.stack(pieces)
        return F.l1_loss(model(batch).sample, batch)

    _descend(model, steps, 1e-3, loss)
    return model


def held_out_face() -> Tensor:
    """`[1, 3, 128, 128]`: the middle of the photograph."""
    return photograph()[(None, slice(None), *_FACE)]


def trained(folder: Path = FOLDER, scale: float = 1.0) -> Path:
    """The folder of the trained models; trains those that are not there.

    Args:
        folder: where they lie.
        scale: of the number of steps, for a quick try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if not (folder / "unet" / "config.json").exists():
        train_unet(int(1800 * scale)).save_pretrained(folder / "unet")
    if not (folder / "classifier.pt").exists():
        torch.save(train_classifier(int(1000 * scale)).state_dict(), folder / "classifier.pt")
    if not (folder / "vae" / "config.json").exists():
        train_vae(int(300 * scale)).save_pretrained(folder / "vae")
    print(f"{folder}: {time.perf_counter() - start:.0f} s")
    return folder


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(",")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps")
    options = parser.parse_args()
    trained(options.out, options.scale)


if __name__ == "__main__":
    main()
