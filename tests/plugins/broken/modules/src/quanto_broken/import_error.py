# SPDX-License-Identifier: Apache-2.0
"""Needs a library that is not installed."""

import a_library_that_nobody_has  # noqa: F401

QUANTO_API = 1
