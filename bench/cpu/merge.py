# SPDX-License-Identifier: Apache-2.0
"""Adds a run to an earlier one of the same machine: what was measured again replaces what was there."""

from __future__ import annotations

from typing import Any

__all__ = ["merged", "merged_runs"]

# What tells rows of a list apart.
KEYS = {
    "linear": ("source", "name", "weights", "compute", "activations", "n", "k", "tokens", "threads"),
    "operators": ("operator", "weights", "threads"),
    "ceilings": ("threads",),
}
ONCE = ("missing", "versions")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both runs, profile by profile.

    Raises:
        ValueError: if they come from two machines.
    """
    if (old["machine"], old["cores"]) != (new["machine"], new["cores"]):
        raise ValueError(
            f"the file holds results of {old['machine']}, this is {new['machine']}: name another with --out"
        )
    profiles = {found["profile"]: found for found in old["profiles"]}
    for found in new["profiles"]:
        before = profiles.get(found["profile"], {})
        rows = {name: _rows(before.get(name, []), found[name], key) for name, key in KEYS.items()}
        once = {name: {**before.get(name, {}), **found[name]} for name in ONCE}
        profiles[found["profile"]] = {**found, **rows, **once, "seconds": before.get("seconds", 0) + found["seconds"]}
    return {**new, "profiles": list(profiles.values())}


def _rows(old: list[dict[str, Any]], new: list[dict[str, Any]], key: tuple[str, ...]) -> list[dict[str, Any]]:
    found = {tuple(row[k] for k in key): row for row in (*old, *new)}
    return list(found.values())


def merged_runs(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Decoding, of which each `run` is a process: those of the new results take the place of the old of that name.

    Raises:
        ValueError: if anything but the rows differs, such as the machine or torch's version.
    """
    apart = [key for key in new if key != "rows" and old.get(key) != new[key]]
    if apart:
        told = ", ".join(f"{key} is {old.get(key)} there, {new[key]} here" for key in apart)
        raise ValueError(f"the file holds other results ({told}): name another with --out, or delete it")
    runs = {row["run"] for row in new["rows"]}
    return {**new, "rows": [*(row for row in old["rows"] if row["run"] not in runs), *new["rows"]]}
