# SPDX-License-Identifier: Apache-2.0
"""Quantizes a model of your own with rules per layer, explains the kernels, saves, loads."""

import torch
from torch import nn

import quanto

torch.manual_seed(0)


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(256), nn.ReLU(), nn.Linear(256, 10)
    )


model, images = build(), torch.randn(4, 3, 16, 16)
expected = model(images)  # gives the lazy layer its size

quanto.quantize(
    model,
    weights="int4",
    rules={"0": "int8", "5": quanto.Scheme("int8", "int8")},  # more bits for the first and the last layer
)
quanto.freeze(model)
error = (model(images) - expected).norm() / expected.norm()
print(f"relative error {error:.3f}, {sum(p.nbytes for p in model.parameters())} bytes")
print(quanto.explain(model))

quanto.save(model, "my-model")
again = build()
again(images)
quanto.load("my-model", again)
print("loaded equal:", torch.equal(again(images), model(images)))
