# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training: what int2 rounding breaks, a few steps repair."""

import torch
from torch import nn

import quanto

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 8))
student = quanto.quantized(teacher, weights="int2", group_size=32)
optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)


def loss(batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(student(batch), teacher(batch).detach())


held_out = torch.randn(512, 32)
print(f"after rounding  {loss(held_out).item():.4f}")
for _ in range(600):
    optimizer.zero_grad()
    loss(torch.randn(64, 32)).backward()
    optimizer.step()
quanto.freeze(student)
print(f"after training  {loss(held_out).item():.4f}, frozen")
