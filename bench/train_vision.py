# SPDX-License-Identifier: Apache-2.0
"""Trains a small image classifier from images that a package carries, so that anyone can rebuild the tables.

`python -m bench.train_vision` takes a few minutes of one core and writes to `.cache/bench/vision`: `model`, a residual
network of transformers on Fashion-MNIST (the Debian package dataset-fashion-mnist), and `test.jsonl` with images that
it has not seen. Then, for example,

    quanto quantize .cache/bench/vision/model -o int4 --weights int4
    quanto eval int4 --data .cache/bench/vision/test.jsonl --against .cache/bench/vision/model

Seeded: the same model each time on one machine.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .sources.packages import debian

__all__ = ["FOLDER", "images", "train"]

FOLDER = Path(__file__).parents[1] / ".cache" / "bench" / "vision"
NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIZE = 56


def images(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of `train` or `t10k`, uint8 `[n, 28, 28]`, and their labels, int64 `[n]`."""
    folder = debian("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    found = torch.frombuffer(bytearray(pixels[: count * 784]), dtype=torch.uint8).view(-1, 28, 28)
    return found, torch.tensor(list(labels[:count]))


def train(options: argparse.Namespace) -> Any:
    """Cross-entropy with AdamW and one cycle of learning rates; images are moved and mirrored at random."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    pixels, labels = images("train", options.images)
    config = ResNetConfig(
        num_channels=3,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=len(NAMES),
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    model = ResNetForImageClassification(config).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=0.05)
    steps = options.epochs * (len(labels) // options.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, steps)
    start = time.perf_counter()
    for step in range(steps):
        if step % (len(labels) // options.batch) == 0:
            order = torch.randperm(len(labels)).split(options.batch)
        index = order[step % (len(labels) // options.batch)]
        logits = model(pixel_values=_augmented(pixels[index]).to(options.device)).logits
        loss = F.cross_entropy(logits, labels[index].to(options.device), label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} of {steps}, loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def _augmented(pixels: Tensor) -> Tensor:
    """Inputs float32 `[n, 3, 56, 56]` from -1 to 1."""
    x = F.pad(pixels.float().unsqueeze(1) / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    top, left = torch.randint(5, (2,)).tolist()
    x = x[:, :, top : top + 28, left : left + 28]
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
    return F.interpolate(x, (SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)


def main() -> None:
    """Reads the arguments, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write")
    parser.add_argument("--images", type=int, default=12_000, help="of 60,000 to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--test", type=int, default=1000, help="images to write for measuring")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    from PIL import Image
    from transformers import ViTImageProcessor

    model = train(options)
    print(f"{model.num_parameters():,} parameters, to {options.out}")
    model.save_pretrained(options.out / "model")
    half, size = [0.5, 0.5, 0.5], {"height": SIZE, "width": SIZE}
    ViTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(options.out / "model")
    (options.out / "test").mkdir(exist_ok=True)
    lines = []
    for i, (pixels, label) in enumerate(zip(*images("t10k", options.test), strict=True)):
        Image.fromarray(pixels.numpy()).save(options.out / "test" / f"{i}.png")
        lines.append(json.dumps({"image": f"test/{i}.png", "label": NAMES[int(label)]}))
    (options.out / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
