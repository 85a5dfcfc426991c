# SPDX-License-Identifier: Apache-2.0
"""Measures what quanto-transformers promises: `nox -s bench -- transformers [loading] [generation] [caches] [real]`.

Memory and time of loading, tokens that stay the same when a model is quantized, perplexity with a quantized cache of
keys and values, quality of real models for speech, texts and images. Prints tables and writes them to
`bench/results/transformers-<machine>.json`, where tables that were not asked for stay as they are.

The language model is the demo's; further ones are taken from the folder that QUANTO_MODELS names, one beside another.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import AutoTokenizer

import quanto
import quanto_transformers

from .core import RESULTS, machine
from .hf.caches import caches
from .hf.generation import PROMPT_TOKENS, PROMPTS, generation
from .hf.loading import loading
from .hf.real import real

sys.path.append(str(Path(__file__).parents[1] / "examples"))


def texts(tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The beginnings of 50 paragraphs, int64 [50, 16], and 4096 tokens in a row."""
    from demo.text import prose

    paragraphs = [tokenizer(paragraph)["input_ids"] for paragraph in prose().split("\n\n")]
    starts = [ids[:PROMPT_TOKENS] for ids in paragraphs if len(ids) >= PROMPT_TOKENS][:PROMPTS]
    return torch.tensor(starts), torch.tensor(tokenizer(prose())["input_ids"][:4096])


def models() -> dict[str, Path]:
    """Folders of language models by name."""
    from demo.model import NAME, fetch

    found, others = {NAME: fetch()}, os.environ.get("QUANTO_MODELS")
    for path in sorted(Path(others).glob("*/config.json")) if others else ():
        found[path.parent.name] = path.parent
    return found


def all_generation(console: Console) -> dict[str, Any]:
    """The table of each language model."""
    return {
        name: generation(console, name, folder, texts(AutoTokenizer.from_pretrained(folder))[0])
        for name, folder in models().items()
    }


def demo_caches(console: Console) -> list[dict[str, Any]]:
    """The table of the demo's model."""
    folder = next(iter(models().values()))
    return caches(console, folder, texts(AutoTokenizer.from_pretrained(folder))[1])


TABLES: dict[str, Callable[[Console], Any]] = {
    "loading": loading,
    "generation": all_generation,
    "caches": demo_caches,
    "real": real,
}


def main() -> None:
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.utils.logging.disable_progress_bar()
    console = Console()
    asked = sys.argv[1:] or list(TABLES)
    if unknown := [name for name in asked if name not in TABLES]:
        raise SystemExit(f"no table {unknown[0]!r}; there are: {', '.join(TABLES)}")
    name = f"{machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    path = RESULTS / f"transformers-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    for table in asked:
        found = TABLES[table](console)
        known = json.loads(path.read_text()) if path.is_file() else {}
        figures = {t: known[t] for t in TABLES if t in known} | {table: found}
        path.write_text(json.dumps({"machine": name, "versions": versions(), **figures}, indent=1) + "\n")
    print(f"written to {path}")


def versions() -> dict[str, str]:
    """Of all that decides the figures; without a backend, core's own kernels run."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__, "quanto-core": quanto.__version__}
    found["quanto-transformers"] = quanto_transformers.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["quanto-backend-cpu"] = importlib.metadata.version("quanto-backend-cpu")
    return found


if __name__ == "__main__":
    main()
