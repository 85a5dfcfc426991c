# SPDX-License-Identifier: Apache-2.0
"""`python -m quanto.cli`."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
