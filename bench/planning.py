# SPDX-License-Identifier: Apache-2.0
"""What planned bits gain over uniform ones: one model, one held-out text, rounding to nearest everywhere.

`python -m bench.planning MODEL --text held-out.txt --calibration sample.txt` prints a table and writes
`bench/results/planning-<model>.json`. MODEL is a folder of a causal language model of transformers; its embeddings and
head stay floating. Sensitivities are measured on the calibration text alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import torch

import quanto
from quanto.eval import perplexity

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0, 3.25, 3.5, 4.25])
    parser.add_argument("--samples", type=int, default=8, help="calibration blocks")
    parser.add_argument("--blocks", type=int, default=24, help="held-out blocks")
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--chart", type=Path, help="draw the trade-off with the plan of 3.5 bits in it")
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    held_out = _tokens(tokenizer, options.text, options.blocks * options.block)
    data = _tokens(tokenizer, options.calibration, options.samples * options.block).view(-1, 1, options.block)
    base = perplexity(model, held_out, block=options.block, progress=False)
    print(f"float: perplexity {base}", flush=True)

    start = time.perf_counter()
    first = quanto.plan(model, data, bits=options.bits[0], exclude="lm_head", progress=False)
    seconds = time.perf_counter() - start
    if options.chart is not None:
        first.again(bits=3.5).draw(options.chart)
    rows: list[dict[str, Any]] = []

    def measure(name: str, bits: float, expected: float, **options_of_quantize: Any) -> None:
        made = quanto.freeze(quanto.quantized(model, exclude="lm_head", progress=False, **options_of_quantize))
        found = perplexity(made, held_out, block=options.block, progress=False)
        row = {"scheme": name, "bits": round(bits, 4), "perplexity": found.value, "loss": found.nll - base.nll}
        rows.append({**row, "rise_percent": 100 * math.expm1(found.nll - base.nll), "expected_divergence": expected})
        print(f"{name:16} {bits:6.3f} bits  {found.value:9.3f}  {rows[-1]['rise_percent']:+8.2f} %", flush=True)

    for scheme, bits, expected in first.uniform():
        measure(str(scheme), bits, expected, scheme=scheme)
    for budget in options.bits:
        plan = first.again(bits=budget)
        measure(f"planned {budget:g}", plan.bits, plan.loss, rules=plan.rules)
    result = {
        "model": options.model.name,
        "convention": f"{options.text.name}, {base.convention}",
        "calibration": f"{options.calibration.name}, {options.samples} blocks of {options.block} tokens",
        "float_perplexity": base.value,
        "sensitivity_seconds": round(seconds, 1),
        "versions": {
            "torch": torch.__version__,
            "quanto-core": quanto.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    path = RESULTS / f"planning-{options.model.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


def _tokens(tokenizer: Any, path: Path, count: int) -> torch.Tensor:
    text = path.read_text(encoding="utf-8")[: 16 * count]
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])[:count]


if __name__ == "__main__":
    main()
