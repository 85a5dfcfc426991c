# SPDX-License-Identifier: Apache-2.0
"""What quantizing costs in perplexity: one model, one text, every algorithm and width, peers where installed.

`python -m bench.accuracy MODEL --text held-out.txt --calibration sample.txt` prints a table and writes
`bench/results/accuracy-<model>.json` and `.md`. MODEL is a folder of a causal language model of transformers. Loss is
the rise of the log-perplexity over the float model; bits count codes, scales and zero points of all quantized weights.
Embeddings and head stay floating. Finished rows are kept: a run that was interrupted goes on with the next.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import quanto
from quanto.algorithms import Pipeline
from quanto.nn import QModule

from .peers import PEERS

RESULTS = Path(__file__).parent / "results"
SEED = 0

#: width -> group sizes
GROUPS = {8: (None,), 4: (128,), 3: (128,), 2: (64, 32)}
#: label -> qtype of weights and activations, steps before freezing, whether activations are static
ACTIVATIONS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "int8 x int8 dynamic": ("int8", (), False),
    "int8 x int8 static": ("int8", (), True),
    "int8 x int8 static smooth": ("int8", ("smooth",), True),
    "float8 x float8 dynamic": ("float8", (), False),
}
FREE = ("absmax", "minmax", "mse", "hqq", "mse int", "hqq int")  # int: with whole zero points


@dataclass
class Setup:
    """What all rows share.

    Attributes:
        load: makes a fresh float model.
        batches: calibration tokens, int64 `[4, block]` each.
        tokens: held-out tokens, int64 `[n]`.
        block: tokens per block.
    """

    load: Callable[[], Any]
    batches: list[torch.Tensor]
    tokens: torch.Tensor
    block: int

    def loss(self, model: Any) -> float:
        """Negative log-likelihood per token of the held-out text, in nats."""
        return quanto.eval.perplexity(model, self.tokens, block=self.block, batch_size=4, progress=False).nll


def bits_per_weight(model: Any) -> float:
    """Codes, scales and zero points, in bits per quantized weight."""
    bits = weights = 0
    for module in model.modules():
        if isinstance(module, QModule) and module.frozen:
            for name in module._slots:
                q = module.qtensor(name)
                bits, weights = bits + 8 * q.nbytes, weights + q.numel()
    return bits / weights


def quantize(setup: Setup, bits: int, group: int | None, algorithm: str | tuple[str, ...]) -> tuple[Any, float]:
    """A frozen model and the seconds that quantizing it took."""
    model = setup.load()
    options: dict[str, Any] = {"scale_dtype": "float16", "exclude": ["lm_head"]}
    if group is not None:
        options["group_size"] = group
    free = isinstance(algorithm, str)
    if isinstance(algorithm, str):
        name, _, whole = algorithm.partition(" ")
        options |= {"algorithm": name} | ({"zero_point": whole} if whole else {})
    quanto.quantize(model, f"int{bits}", **options)
    start = time.perf_counter()
    if free:
        quanto.freeze(model)
    else:
        torch.manual_seed(SEED)
        Pipeline(*algorithm).run(model, setup.batches)
    return model, time.perf_counter() - start


def quantize_both(setup: Setup, qtype: str, steps: tuple[str, ...], static: bool) -> tuple[Any, float]:
    """A frozen model with quantized activations and the seconds that it took."""
    model = setup.load()
    quanto.quantize(model, qtype, qtype, exclude=["lm_head"], dynamic=None if static else True)
    start = time.perf_counter()
    if steps:
        Pipeline(*steps).run(model, setup.batches)
    if static:
        with torch.no_grad(), quanto.Calibration(streamline=True):
            for batch in setup.batches:
                model(batch)
    return quanto.freeze(model), time.perf_counter() - start


def rows(widths: list[int], pipelines: list[str]) -> list[tuple[str, int, int | None, str | tuple[str, ...]]]:
    """Label, bits, group size and algorithm of each row of quanto's."""
    out: list[tuple[str, int, int | None, str | tuple[str, ...]]] = []
    calibrated = [tuple(pipeline.split("+")) for pipeline in pipelines]
    for bits in widths:
        for group in GROUPS[bits]:
            named = f"int{bits}" + (f" g{group}" if group else "")
            out += [(f"{named} {name}", bits, group, name) for name in FREE if bits < 8 or " " not in name]
            out += [(f"{named} {' + '.join(steps)}", bits, group, steps) for steps in calibrated]
    return out


def measure(setup: Setup, widths: list[int], pipelines: list[str], path: Path, result: dict[str, Any]) -> None:
    """Fills in the rows that are missing, writing after each."""
    if "float" not in result:
        result["float"] = {"loss": setup.loss(setup.load())}
    base = result["float"]["loss"]
    found = result.setdefault("rows", {})
    for label, bits, group, algorithm in rows(widths, pipelines):
        if label in found:
            continue
        model, seconds = quantize(setup, bits, group, algorithm)
        found[label] = {
            "bits": round(bits_per_weight(model), 3),
            "loss": setup.loss(model) - base,
            "seconds": round(seconds, 1),
            "device": next(model.parameters()).device.type,
        }
        write(path, result)
        print(f"{label:32} {found[label]}", flush=True)
    for label, (qtype, steps, static) in ACTIVATIONS.items():
        if label not in found:
            model, seconds = quantize_both(setup, qtype, steps, static)
            bits = round(bits_per_weight(model), 3)
            found[label] = {"bits": bits, "loss": setup.loss(model) - base, "seconds": round(seconds, 1)}
            write(path, result)
            print(f"{label:32} {found[label]}", flush=True)
    for label, peer in PEERS.items():
        if label in found and "missing" not in found[label]:
            continue
        try:
            model = setup.load()
            bits = peer(model, setup.batches)
            found[label] = {"bits": round(bits, 3), "loss": setup.loss(model) - base}
        except ImportError as error:
            found[label] = {"missing": str(error)}
        except Exception as error:  # a peer that fails is a row of the table, not the end of it
            found[label] = {"missing": f"{type(error).__name__}: {error}"[:200]}
        write(path, result)
        print(f"{label:32} {found[label]}", flush=True)


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown; recovered is the part of min/max's loss at the same width that is gone."""
    base = result["float"]["loss"]
    lines = [
        f"# {result['model']}",
        "",
        f"Held-out text {result['text']}, {result['tokens']:,} tokens in blocks of {result['block']}; calibration "
        f"{result['calibration']}, {result['samples']} blocks. Float perplexity {math.exp(base):.3f}.",
        "",
        "| weights | bits per weight | perplexity | times float | loss (nats) | recovered | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in result["rows"].items():
        if "missing" in row:
            lines.append(f"| {label} | missing | | | | | |")
            continue
        plain = result["rows"].get(f"{label.split(' g')[0].split()[0]}" + _group(label) + " minmax", {}).get("loss")
        recovered = f"{1 - row['loss'] / plain:.0%}" if plain and label.startswith("int") and " x " not in label else ""
        where = " on a GPU" if row.get("device", "cpu") != "cpu" else ""
        lines.append(
            f"| {label} | {row['bits']:.2f} | {math.exp(base + row['loss']):.2f} | {math.exp(row['loss']):.4f} "
            f"| {row['loss']:.4f} | {recovered} | {row.get('seconds', '')}{where} |"
        )
    return "\n".join(lines) + "\n"


def _group(label: str) -> str:
    return next((f" {word}" for word in label.split() if word[0] == "g" and word[1:].isdigit()), "")


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes both files."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(result), encoding="utf-8")


def main() -> None:
    """Reads the arguments, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a causal language model")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="sample texts, in equal parts")
    parser.add_argument("--block", type=int, default=512, help="tokens per block")
    parser.add_argument("--blocks", type=int, default=64, help="held-out blocks")
    parser.add_argument("--samples", type=int, default=64, help="calibration blocks")
    parser.add_argument("--bits", type=int, nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--pipelines", nargs="*", default=["gptq", "awq", "awq+gptq"], help="steps joined by +")
    parser.add_argument("--device", default="cpu", help="where to quantize and measure")
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def tokens(path: Path, blocks: int) -> torch.Tensor:
        wanted = blocks * options.block
        text = path.read_text(encoding="utf-8")[: 12 * wanted]
        ids: torch.Tensor = tokenizer(text, return_tensors="pt").input_ids[0][:wanted]
        if len(ids) < wanted:
            parser.error(f"{path} holds {len(ids)} tokens, fewer than {wanted}")
        return ids

    each = options.samples // len(options.calibration)
    parts = [tokens(path, each).view(each, options.block) for path in options.calibration]
    sample = torch.stack(parts, 1).flatten(0, 1)  # in turns, so that every batch holds some of each
    setup = Setup(
        lambda: AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval().to(options.device),
        list(sample.split(4)),
        tokens(options.text, options.blocks),
        options.block,
    )
    path = RESULTS / f"accuracy-{options.model.name}.json"
    facts = {
        "model": options.model.name,
        "text": options.text.name,
        "calibration": " + ".join(path.name for path in options.calibration),
        "block": options.block,
        "tokens": options.blocks * options.block,
        "samples": len(sample),
        "torch": torch.__version__,
        "quanto": quanto.__version__,
    }
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {k: result.get(k) for k in facts} != facts:
        result = facts
    measure(setup, options.bits, options.pipelines, path, result)
    write(path, result)
    print(table(result))


if __name__ == "__main__":
    main()
