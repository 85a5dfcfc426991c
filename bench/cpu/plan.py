# SPDX-License-Identifier: Apache-2.0
"""What a run measures, as data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """Sizes, and how long to look.

    Attributes:
        shapes: `(out_features, in_features)`; every candidate runs at `sweep`, those marked `everywhere` at all.
        sweep: the shape of the wide comparison; another than all `shapes` for none.
        tokens: rows of activations.
        sweep_tokens: the most at which every candidate runs.
        threads: numbers of them.
        rounds: of turns, for each number of tokens.
        megabytes: of copies of each weight; between two uses of one copy lie those of the whole group, and the memory
            that the bandwidth measurement reads.
        slow: seconds; a candidate that a call would take longer is left out, as told by fewer tokens.
        budget: seconds that one candidate may take at one size.
        only: part of a candidate's `source name weights`, to look at few.
    """

    shapes: tuple[tuple[int, int], ...] = ((2048, 2048), (4096, 4096), (14336, 4096))
    sweep: tuple[int, int] = (4096, 4096)
    tokens: tuple[int, ...] = (1, 8, 128, 512)
    sweep_tokens: int = 128
    threads: tuple[int, ...] = (1, 2)
    rounds: tuple[tuple[int, int], ...] = ((1, 7), (8, 4), (128, 3), (512, 3))
    megabytes: int = 128
    slow: float = 1.0
    budget: float = 2.5
    only: str = ""

    def rounds_for(self, tokens: int) -> int:
        return next((rounds for most, rounds in self.rounds if tokens <= most), self.rounds[-1][1])


QUICK = Plan(
    shapes=((256, 512),),
    sweep=(256, 512),
    tokens=(1, 8),
    sweep_tokens=8,
    threads=(1,),
    rounds=((1, 2), (8, 1)),
    megabytes=1,
)
