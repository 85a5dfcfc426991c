# SPDX-License-Identifier: Apache-2.0
"""The demo from the first line to the last."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import model as source
from .chart import draw
from .machine import describe, fastest_dtype
from .measure import Row, Workload, measure_float, measure_quantized
from .reload import reload_in_fresh_process
from .report import notes, table, write_json
from .schemes import EXCLUDE, FLOAT, SCHEMES, SHOWN
from .text import SOURCE, prose

__all__ = ["run"]

PROMPT = "Photosynthesis is the process by which"


def run(options: argparse.Namespace) -> int:
    """Runs everything; returns 0, or 1 if a reloaded model differs from the saved one."""
    began = time.perf_counter()
    console = Console(highlight=False)
    torch.set_num_threads(options.threads)
    dtype = fastest_dtype() if options.dtype == "auto" else getattr(torch, options.dtype)
    about = {"model": source.NAME, "dtype": _name(dtype), "quick": options.quick, **describe()}

    _quiet()
    folder = source.fetch(progress=console.is_terminal)
    console.print(f"[bold]{source.NAME}[/bold], {_name(dtype)}, from {folder}", soft_wrap=True)
    machine = f"{about['processor']}, {about['instructions']}, {about['threads']} threads, torch {about['torch']}"
    console.print(machine + "\n")

    tokenizer = _tokenizer(folder)
    block, blocks = (128, 2) if options.quick else (512, 16)
    prompt = options.prompt or PROMPT
    work = Workload(
        tokens=torch.tensor(tokenizer(prose())["input_ids"])[: block * blocks],
        prompt=torch.tensor(tokenizer(prompt)["input_ids"]),
        block=block,
        generate=12 if options.quick else 48,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    saved = options.out / "models" if options.keep else Path(tempfile.mkdtemp(prefix="models-", dir=options.out))
    try:
        rows = _rows(console, folder, dtype, work, saved)
        console.print("Loading all of them in a fresh process and comparing the logits …")
        found = reload_in_fresh_process(folder, [saved / name for name in SCHEMES], _name(dtype), options.threads)
        rows = [row.reloaded(*found[row.scheme]) if row.scheme in found else row for row in rows]
    finally:
        if not options.keep:
            shutil.rmtree(saved, ignore_errors=True)

    convention = f"{SOURCE}, {rows[0].perplexity.tokens:,} predicted tokens, {rows[0].perplexity.convention}"
    seconds = time.perf_counter() - began
    title = f"{source.NAME} by scheme" + (" (--quick: a check, not a measurement)" if options.quick else "")
    _print(console, rows, title, convention, _kept(folder, dtype), prompt, tokenizer)
    write_json(rows, options.out / "demo.json", {**about, "convention": convention, "seconds": round(seconds, 1)})
    draw(
        rows,
        options.out / "demo.png",
        title=f"{source.NAME}, quantized by quanto",
        caption=f"Perplexity: {convention}\nint4: a second quantization of weights that were stored in 4 bits before. "
        f"Measured on {machine}",
    )
    folder = options.out.resolve()  # nox runs this in another folder than its caller's
    console.print(f"Chart and figures: demo.png and demo.json in {folder}  ({seconds:.0f} s)")
    return 0 if all(row.equal for row in rows[1:]) else 1


def _rows(console: Console, folder: Path, dtype: torch.dtype, work: Workload, saved: Path) -> list[Row]:
    rows = []
    for name in (FLOAT, *SCHEMES):
        start = time.perf_counter()
        model = source.load(folder, dtype)
        load_s = time.perf_counter() - start
        if name == FLOAT:
            row = measure_float(model, work, saved / name).reloaded(load_s, None)
        else:
            row = measure_quantized(model, work, saved / name, name, SCHEMES[name])
        console.print(f"{name:8}perplexity {row.perplexity.value:,.2f}, {row.per_second:.1f} tokens/s")
        rows.append(row)
    return rows


def _kept(folder: Path, dtype: torch.dtype) -> str:
    """What is not quantized, in words."""
    model = source.empty(folder, dtype)
    embedding, total = (round(x / 1e6, 1) for x in (model.model.embed_tokens.weight.numel(), model.num_parameters()))
    names = " and ".join(EXCLUDE)
    return f"{names} are one tied tensor and stay {_name(dtype)}: {embedding} of {total} million parameters."


def _print(
    console: Console, rows: list[Row], title: str, convention: str, kept: str, prompt: str, tokenizer: Any
) -> None:
    console.print()
    console.print(table(rows, title))
    for note in notes(rows, convention, kept):
        console.print(Padding(Text(f"• {note}", style="dim"), (0, 0, 0, 2)))
    console.print(f"\n[bold]Continuing[/bold] “{prompt}”")
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        if row.scheme in SHOWN:
            text = " ".join(tokenizer.decode(row.continuation, skip_special_tokens=True).split())
            grid.add_row(Text(f"  {row.scheme}", style="bold"), Text(f"… {text}"))
    console.print(grid)
    console.print()
    if wrong := [row.scheme for row in rows[1:] if not row.equal]:
        console.print(f"[red]Saved, and loaded in a fresh process: other logits for {', '.join(wrong)}.[/red]")
    else:
        names = ", ".join(row.scheme for row in rows[1:])
        console.print(f"Saved, and loaded in a fresh process: torch.equal(logits) is True for {names}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
