# SPDX-License-Identifier: Apache-2.0
"""Calibrates static int8 activations: layers hand int8 to each other where that is exact."""

import torch
from torch import nn

import quanto

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 8))
samples = [torch.randn(32, 64) for _ in range(8)]
expected = model(samples[0])

quanto.quantize(model, weights="int8", activations="int8")
with torch.no_grad(), quanto.Calibration(momentum=0.9) as calibration:
    for batch in samples:
        model(batch)
quanto.freeze(model)

print(f"{calibration.kept} hand-over stays in int8; removed as gaining nothing: {dict(calibration.removed)}")
error = (model(samples[0]) - expected).norm() / expected.norm()
print(f"relative error {error:.3f}")
