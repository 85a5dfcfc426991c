# SPDX-License-Identifier: Apache-2.0
"""Settings and helpers of core's tests."""

from __future__ import annotations

from hypothesis import settings

# A first call compiles or loads something now and then, so a deadline would fail by chance; the number of examples
# keeps the whole of core's tests within minutes on one core. `pytest --hypothesis-profile=long` looks harder.
settings.register_profile("core", max_examples=25, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("core")
