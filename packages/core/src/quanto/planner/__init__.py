# SPDX-License-Identifier: Apache-2.0
"""The planner: which layer gets how many bits, so that a budget is spent where it counts (docs/planning.md)."""

from .allocation import Curve
from .plan import Plan, plan
from .sensitivity import Sensitivity, sensitivity

__all__ = ["Curve", "Plan", "Sensitivity", "plan", "sensitivity"]
