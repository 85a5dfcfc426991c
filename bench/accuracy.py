# SPDX-License-Identifier: Apache-2.0
"""What quantizing costs in perplexity: one model, one text, every algorithm and width, peers where installed.

`python -m bench.accuracy MODEL --text held-out.txt --calibration sample.txt` prints a table and writes
`bench/results/accuracy-<model>.json` and `.md`. MODEL is a folder of a causal language model of transformers. Loss is
the rise of the log-perplexity over the float model; bits count codes, scales and zero points of all quantized weights.
Embeddings and head stay floating. Finished rows are kept: a run that was interrupted goes on with the next. With
`--jobs` several rows are made at a time, each in a process of its own.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import quanto
from quanto.algorithms import generate_samples

from .language.rows import DRAWN, MANY, MIXED, TEXT, Row, bits_per_weight, build, rows
from .language.table import table, write

__all__ = ["bits_per_weight"]  # of bench/modalities.py too

RESULTS = Path(__file__).parent / "results"

#: width -> group size
GROUPS: dict[int, int | None] = {8: None, 4: 128, 3: 128, 2: 64}
PLANNED = (3.0, 3.5, 4.25)
BATCH = 4  # sequences of a calibration batch


@dataclass
class Setup:
    """What all rows share.

    Attributes:
        folder: of the float model.
        device: where to quantize and measure.
        block: tokens per block.
        batch: blocks that are measured at a time.
        tokens: held-out tokens, int64 `[n]`.
        whole: name of a text -> all of its tokens.
        samples: kind of calibration data -> tokens, int64 `[4, block]` each.
    """

    folder: Path
    device: str
    block: int
    batch: int
    tokens: torch.Tensor
    whole: dict[str, torch.Tensor]
    samples: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def load(self) -> Any:
        """A fresh float model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval().to(self.device)

    def measure(self, model: Any) -> dict[str, Any]:
        """Negative log-likelihood per token of the held-out text, in nats; and of the whole texts."""

        def nll(tokens: torch.Tensor) -> float:
            return quanto.eval.perplexity(model, tokens, block=self.block, batch_size=self.batch, progress=False).nll

        found: dict[str, Any] = {"loss": nll(self.tokens)}
        return found | ({"whole": {name: nll(tokens) for name, tokens in self.whole.items()}} if self.whole else {})


def one(setup: Setup, row: Row, base: dict[str, Any]) -> dict[str, Any]:
    """One row's numbers; what fails is a row too, not the end of the table."""
    try:
        model = setup.load()
        samples = {kind: [batch.to(setup.device) for batch in found] for kind, found in setup.samples.items()}
        bits, seconds = build(row, model, samples)
        if not row.peer and not row.activations:
            quanto.dequantize(model)  # the same values, decoded once instead of for each block
        found = setup.measure(model)
    except Exception as error:
        return {"missing": f"{type(error).__name__}: {error}"[:300]}
    out: dict[str, Any] = {"bits": round(bits, 3), "loss": found["loss"] - base["loss"]}
    if setup.whole:
        out["whole"] = {name: value - base["whole"][name]["loss"] for name, value in found["whole"].items()}
    return out | ({} if row.peer else {"seconds": round(seconds, 1), "device": torch.device(setup.device).type})


_shared: list[Setup] = []


def _start(setup: Setup, threads: int) -> None:
    torch.set_num_threads(threads)
    _shared.append(setup)


def _one(row: Row, base: dict[str, Any]) -> dict[str, Any]:
    return one(_shared[0], row, base)


def measure(setup: Setup, listed: list[Row], only: list[str], jobs: int, path: Path, result: dict[str, Any]) -> None:
    """Fills in those of the rows that match `only` and are missing, writing after each."""
    if "float" not in result:
        exact = setup.measure(setup.load())
        whole = {
            name: {"loss": loss, "tokens": len(setup.whole[name])} for name, loss in exact.get("whole", {}).items()
        }
        result["float"] = {"loss": exact["loss"]} | ({"whole": whole} if whole else {})
    base, found = result["float"], result.setdefault("rows", {})
    order = {row.label: i for i, row in enumerate(listed)}
    todo = [row for row in matching(listed, only) if row.label not in found or "missing" in found[row.label]]

    def keep(row: Row, numbers: dict[str, Any]) -> None:
        found[row.label] = numbers
        result["rows"] = dict(sorted(found.items(), key=lambda pair: order.get(pair[0], len(order))))
        write(path, result)
        print(f"{row.label:36} {numbers}", flush=True)

    if jobs == 1:
        for row in todo:
            keep(row, one(setup, row, base))
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start, initargs=(setup, threads)) as pool:
        running = {pool.submit(_one, row, base): row for row in todo}
        for future in as_completed(running):
            keep(running[future], future.result())


def matching(listed: list[Row], only: list[str]) -> list[Row]:
    """The rows whose labels match a glob."""
    return [row for row in listed if any(fnmatch.fnmatchcase(row.label, glob) for glob in only)]


def digest(paths: Sequence[Path]) -> str:
    """Of what files hold: names stay where models and texts change."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                found.update(part)
    return found.hexdigest()


def draw(setup: Setup, count: int) -> torch.Tensor:
    """Blocks that the model draws itself, int64 `[count, block]`, on the CPU."""
    made = generate_samples(setup.load(), count, setup.block, parallel=min(count, 128), progress=False)
    return torch.cat(made).cpu()


def main() -> None:
    """Reads the arguments, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a causal language model")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--whole", type=Path, nargs="*", default=[], help="texts that are measured whole besides")
    parser.add_argument(
        "--calibration", type=Path, nargs="+", required=True, help="sample texts; the first is the main"
    )
    parser.add_argument("--block", type=int, default=512, help="tokens per block")
    parser.add_argument("--blocks", type=int, default=64, help="held-out blocks")
    parser.add_argument("--samples", type=int, default=64, help="calibration blocks")
    parser.add_argument("--drawn", type=int, default=128, help="blocks that the model draws itself")
    parser.add_argument("--bits", type=int, nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--group", type=int, help="group size below 8 bits; default: 128, and 64 at 2 bits")
    parser.add_argument("--planned", type=float, nargs="*", default=list(PLANNED), help="averages of bits to plan for")
    parser.add_argument("--only", nargs="*", default=["*"], help="globs of rows")
    parser.add_argument("--device", default="cpu", help="where to quantize and measure")
    parser.add_argument("--batch", type=int, default=4, help="blocks that are measured at a time")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def tokens(path: Path, blocks: int | None = None) -> torch.Tensor:
        text = path.read_text(encoding="utf-8")
        wanted = None if blocks is None else blocks * options.block
        ids = torch.tensor(tokenizer(text if wanted is None else text[: 12 * wanted], verbose=False)["input_ids"])
        if wanted is not None and len(ids) < wanted:
            parser.error(f"{path} holds {len(ids)} tokens, fewer than {wanted}")
        return ids[:wanted]

    whole = {path.name: tokens(path) for path in options.whole}
    setup = Setup(
        options.model, options.device, options.block, options.batch, tokens(options.text, options.blocks), whole
    )
    each = options.drawn
    facts = {
        "model": options.model.name,
        "text": options.text.name,
        "calibration": [path.name for path in options.calibration],
        "block": options.block,
        "tokens": options.blocks * options.block,
        "samples": options.samples,
        "drawn": each,
        "mixed": each // 2 * (len(options.calibration) + 1),
        "torch": torch.__version__,
        "quanto": quanto.__version__,
    }
    of = digest([*sorted(options.model.glob("*.safetensors")), options.text, *options.calibration, *options.whole])
    path = options.out / f"accuracy-{options.model.name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {k: result.get(k) for k in facts} != facts or result.get("of", of) != of:
        result = dict(facts)
    result["of"] = of
    groups = {bits: GROUPS[bits] and (options.group or GROUPS[bits]) for bits in options.bits}
    listed = rows(groups, options.planned)
    setup.samples[TEXT] = list(tokens(options.calibration[0], options.samples).view(-1, options.block).split(BATCH))
    kinds = {row.data for row in matching(listed, options.only)}
    if MANY in kinds:
        setup.samples[MANY] = list(draw(setup, 4 * each).split(BATCH))
    if kinds & {DRAWN, MIXED}:
        start = time.perf_counter()
        drawn = draw(setup, each)
        print(f"drew {drawn.numel()} tokens in {time.perf_counter() - start:.0f} s", flush=True)
        parts = [tokens(path, each // 2).view(-1, options.block) for path in options.calibration] + [drawn[: each // 2]]
        setup.samples[DRAWN] = list(drawn.split(BATCH))
        # in turns, so that every batch holds some of each
        setup.samples[MIXED] = list(torch.stack(parts, 1).flatten(0, 1).split(BATCH))
    measure(setup, listed, options.only, options.jobs, path, result)
    write(path, result)
    print(table(result))


if __name__ == "__main__":
    main()
