# SPDX-License-Identifier: Apache-2.0
"""Broken plugins, each a module. All of them try to register the qtype `broken`."""

import torch

from quanto import QType

broken = QType("broken", 5, torch.int8)
