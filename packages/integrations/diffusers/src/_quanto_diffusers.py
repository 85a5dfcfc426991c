# SPDX-License-Identifier: Apache-2.0
"""The entry point of quanto-diffusers in `torch.backends`.

A module of its own, so that `QUANTO_AUTOLOAD=0` leaves `quanto_diffusers` unimported, and importing it by hand later
still works. It must not fail, for torch could not be imported then.
"""

import os


def autoload() -> None:
    """Installs the hook that `quanto_diffusers.hook` describes."""
    if os.environ.get("QUANTO_AUTOLOAD", "1").lower() in ("0", "false", "no", "off"):
        return
    try:
        import quanto_diffusers  # noqa: F401
    except Exception:  # a half-removed package must not break torch; importing it by hand will show the error
        return
