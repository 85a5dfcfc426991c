# SPDX-License-Identifier: Apache-2.0
"""Greedy texts of quantized models beside those of the float32 model, and of bfloat16, to judge the others by.

Free-running, a text is lost with the first token that differs, for the model then reads another text. So the likeliest
next token at each place of the float model's own text is compared too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from quanto_transformers import QuantoConfig

__all__ = ["PROMPTS", "PROMPT_TOKENS", "generation"]

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 50, 16, 60
SCHEMES: dict[str, dict[str, Any]] = {
    "bfloat16, not quantized": {},
    "int8": {"weights": "int8"},
    "int8 g32": {"weights": "int8", "group_size": 32},
    "int8 g32 mse": {"weights": "int8", "group_size": 32, "algorithm": "mse"},
    "int8 g16 minmax": {"weights": "int8", "group_size": 16, "symmetric": False},
    "int4": {"weights": "int4"},
    "int4 hqq": {"weights": "int4", "algorithm": "hqq"},
}


def generation(console: Console, name: str, folder: Path, prompts: torch.Tensor) -> list[dict[str, Any]]:
    """Measures, prints a table and returns its rows.

    Args:
        console: where to.
        name: of the model.
        folder: of it.
        prompts: int64 `[50, 16]`.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = _continue(model, prompts)
    rows = []
    for scheme, config in SCHEMES.items():
        given = {"quantization_config": QuantoConfig(**config)} if config else {}
        dtype = torch.float32 if config else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **given)
        same = _continue(model, prompts) == expected
        with torch.no_grad():  # the next token of each place in the float model's text
            logits = model(torch.cat([prompts, expected], 1)).logits[:, PROMPT_TOKENS - 1 : -1]
        rows.append(
            {
                "scheme": scheme,
                "same tokens": same.double().mean().item(),
                "same texts": same.all(1).double().mean().item(),
                "same next token": (logits.argmax(-1) == expected).double().mean().item(),
            }
        )
    table = Table(title=f"{name}: {PROMPTS} greedy texts of {NEW_TOKENS} tokens beside those of the float model")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for row in rows:
        table.add_row(row["scheme"], *(f"{v:.1%}" for k, v in row.items() if k != "scheme"))
    console.print(table)
    return rows


@torch.no_grad()
def _continue(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    mask = torch.ones_like(prompts)
    out: torch.Tensor = model.generate(prompts, attention_mask=mask, **options)[:, prompts.shape[1] :]
    return out
