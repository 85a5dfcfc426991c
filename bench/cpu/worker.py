# SPDX-License-Identifier: Apache-2.0
"""One processor's measurements in a process of their own: `python -m bench.cpu.worker PROFILE OUT PLAN`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from . import profiles
from .plan import Plan

__all__ = ["main"]


def main() -> None:
    profile, out, plan = sys.argv[1], Path(sys.argv[2]), Plan(**json.loads(sys.argv[3]))
    plan = Plan(**{name: _tuples(value) for name, value in vars(plan).items()})
    said = profiles.apply(profile)  # before torch
    from .measure import measure

    load = os.getloadavg()
    start = time.perf_counter()
    found: dict[str, Any] = {"profile": profile, "processor": said, **measure(plan)}
    found |= {"load_before": load, "load_after": os.getloadavg(), "seconds": time.perf_counter() - start}
    out.write_text(json.dumps(found))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
