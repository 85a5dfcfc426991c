# SPDX-License-Identifier: Apache-2.0
"""Measures pictures: `nox -s bench -- diffusers`, how near quantized models' pictures come to the float ones'.

Two models that `bench/train_diffusion.py` trains where they are missing, in a few minutes: a diffusion model draws
handwritten digits from the same noise under each scheme, and an autoencoder reproduces a part of a photograph that it
was never trained on. PSNR, SSIM and a perceptual distance compare with the float model's pictures; how many digits a
classifier reads as what was asked for needs no comparison. Writes tables to `bench/results/diffusers-<machine>.json`
and the pictures below one another to `docs/images/diffusers.png`. `--device cuda` also times a transformer of Flux's
width, and then leaves the picture alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from matplotlib import figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from quanto_diffusers import QuantoConfig, calibrate

from .core import RESULTS, machine
from .pictures.flux import speeds
from .pictures.similarity import perceptual, psnr, ssim
from .train_diffusion import FOLDER, Classifier, held_out_face, trained

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "diffusers.png"

#: by name, the fields of a `QuantoConfig`; None for the float model.
SCHEMES: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "int8": {"weights": "int8"},
    "int8, activations int8": {"weights": "int8", "activations": "int8"},
    "int8, activations int8 static": {"weights": "int8", "activations": "int8", "dynamic": False},
    "float8": {"weights": "float8"},
    "float8, activations float8": {"weights": "float8", "activations": "float8"},
    "int4": {"weights": "int4"},
    "int4 g32": {"weights": "int4", "group_size": 32},
    "int4 g32 hqq": {"weights": "int4", "group_size": 32, "algorithm": "hqq"},
    "nf4 g32": {"weights": "nf4", "group_size": 32},
    "fp4 g32": {"weights": "fp4", "group_size": 32},
    "int4 g32, ends int8": {"weights": "int4", "group_size": 32, "rules": {"*conv_in": "int8", "*conv_out": "int8"}},
    "int3 g32": {"weights": "int3", "group_size": 32},
    "int2 g32": {"weights": "int2", "group_size": 32},
}


def load(kind: Any, folder: Path, fields: dict[str, Any] | None, device: torch.device) -> Any:
    """A model, quantized as it loads."""
    config = None if fields is None else QuantoConfig(**fields)
    return kind.from_pretrained(folder, quantization_config=config, device_map={"": device})


@torch.no_grad()
def draw(model: Any, each: int, device: torch.device, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Digits `[10 * each, 1, 8, 8]` from the same noise each time, and which digits were asked for."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    labels = torch.arange(10, device=device).repeat(each)
    x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    for step in scheduler.timesteps:
        x = scheduler.step(model(x, step, class_labels=labels).sample, step, x).prev_sample
    return x.clamp(-1, 1), labels


def digits_by_scheme(folder: Path, each: int, device: torch.device) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A row for each scheme, and ten of its digits."""
    reader = Classifier().to(device)
    reader.load_state_dict(torch.load(folder / "classifier.pt", weights_only=True))
    rows, shown, exact = [], [], torch.empty(0)
    for name, fields in SCHEMES.items():
        model = load(UNet2DModel, folder / "unet", fields, device)
        if fields is not None and fields.get("dynamic") is False:
            calibrate(model, lambda: draw(model, 2, device), progress=False)  # noqa: B023 - called at once
        start = time.perf_counter()
        found, labels = draw(model, each, device)
        seconds = time.perf_counter() - start
        exact = found if fields is None else exact
        row = {"scheme": name, "bytes": model.get_memory_footprint(), "seconds": round(seconds, 2)}
        row |= {"psnr": psnr(found, exact), "ssim": ssim(found, exact)}
        row["perceptual"] = perceptual(found, exact, reader.features)
        row["read as asked"] = float((reader(found).argmax(1) == labels).float().mean())
        rows.append(row)
        shown.append(torch.cat(list(found[:20]), 2)[0].cpu())
    return rows, shown


@torch.no_grad()
def photographs_by_scheme(folder: Path, device: torch.device) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A row for each scheme, and its picture."""
    face = held_out_face().to(device)
    judge = load(AutoencoderKL, folder / "vae", None, device).encoder

    def features(x: Tensor) -> list[Tensor]:
        found = [judge.conv_in(x)]
        for block in judge.down_blocks:
            found.append(block(found[-1]))
        return found

    rows, shown, exact = [], [], face
    for name, fields in SCHEMES.items():
        model = load(AutoencoderKL, folder / "vae", fields, device)
        if fields is not None and fields.get("dynamic") is False:
            calibrate(model, [{"sample": face.flip(3)}], progress=False)
        found = model(face).sample.clamp(-1, 1)
        exact = found if fields is None else exact
        row = {"scheme": name, "bytes": model.get_memory_footprint()}
        row |= {"psnr": psnr(found, exact), "ssim": ssim(found, exact)}
        row["perceptual"] = perceptual(found, exact, features)
        rows.append({**row, "psnr against the photograph": psnr(found, face)})
        shown.append(found[0, :, 32:96].permute(1, 2, 0).cpu())
    return rows, shown


def side_by_side(digits: list[Tensor], photographs: list[Tensor], path: Path) -> None:
    """Writes a line for each scheme: its name, twenty digits, a piece of the photograph."""
    canvas = figure.Figure(figsize=(10, 0.62 * len(SCHEMES)), dpi=80, layout="constrained")
    axes = canvas.subplots(len(SCHEMES), 2, width_ratios=(20, 6))
    for (left, right), name, line, photo in zip(axes, SCHEMES, digits, photographs, strict=True):
        left.imshow(line, cmap="gray", vmin=-1, vmax=1)
        right.imshow((photo + 1) / 2)
        left.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for one in (left, right):
            one.set_xticks([])
            one.set_yticks([])
    canvas.savefig(path)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table."""
    columns = [key for key in rows[0] if key != "kernels"]
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_cell(row[key]) for key in columns))
    Console().print(table)


def main() -> None:
    """Trains what is missing, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--models", type=Path, default=FOLDER, help="where the trained models lie, or will")
    parser.add_argument("--each", type=int, default=20, help="how many of each digit to draw")
    parser.add_argument("--blocks", type=int, default=1, help="double blocks of the transformer that is timed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    folder, device = trained(options.models), options.device
    digits, lines = digits_by_scheme(folder, options.each, device)
    show("digits", digits)
    photographs, pieces = photographs_by_scheme(folder, device)
    show("photograph", photographs)
    result = {"digits": digits, "photograph": photographs}
    name = machine()
    if device.type == "cpu":
        side_by_side(lines, pieces, PICTURE)
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{name} {device.type}"
        result["flux"] = list(speeds(device, options.blocks))
        show(f"Flux of {options.blocks} and {2 * options.blocks} blocks, 1024 x 1024 pixels", result["flux"])
    versions = {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "quanto-core", "quanto-diffusers")}
    out: Path = options.out / f"diffusers-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    out.write_text(json.dumps({"versions": versions, **result}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
