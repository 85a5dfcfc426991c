# SPDX-License-Identifier: Apache-2.0
"""Makes the packages of this repository known where nothing can be installed.

`export PYTHONPATH=$(python -m bench.hf.uninstalled FOLDER)` writes to FOLDER, for each package that hatchling builds,
the `dist-info` that an installation would: name, version and entry points. Sources stay where they are. Plugins,
torch's hook and `quanto info` then find what they find when the packages are installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def describe(package: Path, folder: Path) -> None:
    """Writes the `dist-info` of a package."""
    data: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())
    project = data["project"]
    text = (package / data["tool"]["hatch"]["version"]["path"]).read_text()
    version = re.search(r'__version__ = "(.+?)"', text)
    assert version is not None, package
    info = folder / f"{project['name'].replace('-', '_')}-{version[1]}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {version[1]}\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


def main() -> None:
    folder, sources = Path(sys.argv[1]).absolute(), []
    for manifest in sorted(ROOT.glob("packages/**/pyproject.toml")):
        if "[tool.hatch.version]" in manifest.read_text():
            describe(manifest.parent, folder)
            sources.append(manifest.parent / "src")
    print(":".join(map(str, (folder, *sources))))


if __name__ == "__main__":
    main()
