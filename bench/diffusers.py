# SPDX-License-Identifier: Apache-2.0
"""Measures pictures: `nox -s bench -- diffusers`, how near a quantized autoencoder's come to the float one's.

No package carries weights of a diffusers model, so a small `AutoencoderKL` is trained here, for a minute or two on
pieces of the photograph that matplotlib ships, and judged on a strip of it that training never sees. Prints a table,
writes it to `bench/results/diffusers-<machine>.json`, and the pictures side by side to `bench/results/diffusers.png`.
PSNR and SSIM (Wang et al. 2004, 7 x 7 windows) are against the float model's own pictures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from matplotlib import cbook, image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from quanto_diffusers import QuantoConfig, calibrate

from .core import RESULTS, machine

SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "int8, activations int8": {"weights": "int8", "activations": "int8"},
    "int8, activations int8 static": {"weights": "int8", "activations": "int8", "dynamic": False},
    "float8": {"weights": "float8"},
    "int4": {"weights": "int4"},
    "int4 g32": {"weights": "int4", "group_size": 32},
    "int4 hqq": {"weights": "int4", "algorithm": "hqq"},
    "nf4": {"weights": "nf4"},
    "int4, ends int8": {"weights": "int4", "rules": {"*conv_in": "int8", "*conv_out": "int8"}},
    "int2 g32": {"weights": "int2", "group_size": 32},
}


def photograph() -> Tensor:
    """`[3, height, width]`, from -1 to 1."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = torch.tensor(image.imread(file))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def train(photo: Tensor, steps: int, size: int = 48) -> AutoencoderKL:
    """A small autoencoder, from scratch; the same each time on one machine."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=8,
        norm_num_groups=8,
        layers_per_block=1,
    )
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        rows = torch.randint(photo.shape[1] - size, (6,)).tolist()
        columns = torch.randint(photo.shape[2] - size, (6,)).tolist()
        batch = torch.stack([photo[:, y : y + size, x : x + size] for y, x in zip(rows, columns, strict=True)])
        loss = F.l1_loss(model(batch).sample, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def psnr(x: Tensor, y: Tensor) -> float:
    """In decibels, of pictures from -1 to 1."""
    return -10 * math.log10(max(float(F.mse_loss(x, y)) / 4, 1e-12))


def ssim(x: Tensor, y: Tensor) -> float:
    """Mean structural similarity of pictures `[1, 3, height, width]` from -1 to 1, over windows of 7 x 7."""
    a, b = F.avg_pool2d(x, 7, 1), F.avg_pool2d(y, 7, 1)
    both = F.avg_pool2d(x * y, 7, 1) - a * b
    spread = F.avg_pool2d(x * x, 7, 1) - a * a + F.avg_pool2d(y * y, 7, 1) - b * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return float(((2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (spread + c2))).mean())


@torch.no_grad()
def measure(steps: int) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A row for each scheme, and the pictures: the original, the float model's, and each scheme's."""
    photo = photograph()
    held_out = photo[:, 100:300, -128:][None, :, :192]  # of the right edge, which is cut from what is trained on
    with torch.enable_grad():
        model = train(photo[:, :, :-128], steps)
    exact = model(held_out).sample
    pictures, rows = [held_out, exact], []
    rows.append({"scheme": "float32, against the photograph", "psnr": psnr(exact, held_out)})
    rows[0] |= {"ssim": ssim(exact, held_out), "bytes": model.get_memory_footprint()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, fields in SCHEMES.items():
            made = AutoencoderKL.from_pretrained(folder, quantization_config=QuantoConfig(**fields))
            if fields.get("dynamic") is False:
                calibrate(made, [{"sample": photo[None, :, 100:292, :128]}], progress=False)
            found = made(held_out).sample
            pictures.append(found)
            row = {"scheme": name, "psnr": psnr(found, exact), "ssim": ssim(found, exact)}
            rows.append({**row, "bytes": made.get_memory_footprint()})
    return rows, pictures


def main() -> None:
    """Trains, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--steps", type=int, default=300, help="of training")
    steps = parser.parse_args().steps
    rows, pictures = measure(steps)
    table = Table("scheme", "PSNR dB", "SSIM", "bytes")
    for row in rows:
        table.add_row(row["scheme"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['bytes']:,}")
    Console().print(table)
    strip = torch.cat(pictures, 3)[0].permute(1, 2, 0).clamp(-1, 1)
    image.imsave(RESULTS / "diffusers.png", ((strip + 1) / 2).numpy())
    versions = {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "quanto-core", "quanto-diffusers")}
    out: Path = RESULTS / f"diffusers-{re.sub(r'[^a-z0-9]+', '-', machine().lower()).strip('-')}.json"
    out.write_text(json.dumps({"versions": versions, "steps": steps, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
