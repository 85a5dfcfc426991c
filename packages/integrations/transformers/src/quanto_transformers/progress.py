# SPDX-License-Identifier: Apache-2.0
"""transformers' progress bars, where somebody sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_unless_seen"]


@contextmanager
def quiet_unless_seen() -> Iterator[None]:
    """No progress bar of transformers meanwhile, if standard error is not a terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown and not (sys.stderr is not None and sys.stderr.isatty()):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
