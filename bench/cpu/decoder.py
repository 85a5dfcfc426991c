# SPDX-License-Identifier: Apache-2.0
"""One sequence decoded greedily after a prompt of eight tokens, each token timed."""

from __future__ import annotations

import time
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

__all__ = ["PROMPT", "UNTIMED", "Compiled", "Eager", "Unguarded"]

PROMPT = tuple(range(100, 108))
UNTIMED = 3  # tokens in which memory is allocated, and kernels are chosen


class Eager:
    """As transformers decodes by itself: a cache that grows, every layer called from Python."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens: list[int] = []

    def cache(self) -> Any:
        """An empty cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        """The next token, `[1, 1]`."""
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def __call__(self, count: int) -> list[float]:
        """Decodes anew; returns the seconds of each of the last tokens, and leaves all in `tokens`."""
        cache = self.cache()
        ids = Eager.step(self, torch.tensor([PROMPT]), cache)
        self.tokens, seconds = [int(ids)], []
        for step in range(count):
            start = time.perf_counter()
            ids = self.step(ids, cache)
            took = time.perf_counter() - start
            self.tokens.append(int(ids))
            if step >= UNTIMED:
                seconds.append(took)
        return seconds


class Compiled(Eager):
    """One graph for a whole token, over a cache of fixed length; the prompt runs eagerly.

    Args:
        model: see `Eager`.
        length: tokens that the cache holds.
    """

    def __init__(self, model: Any, length: int) -> None:
        from transformers import StaticCache

        super().__init__(model)
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        # Code of its own, as in a process with one model: graphs of one code are looked through one after the other.
        step = FunctionType(Eager.step.__code__.replace(), Eager.step.__globals__)
        self._step = torch.compile(MethodType(step, self), fullgraph=True, dynamic=False)

    def cache(self) -> Any:
        """The only one, emptied: the graph writes to its memory."""
        self._cache.reset()
        return self._cache

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        """See `Eager.step`."""
        return self._step(ids, cache)


class Unguarded(Compiled):
    """The same graph, called without looking whether it is the one made for what is given.

    Args:
        compiled: whose graph it is; compiled already.
    """

    def __init__(self, compiled: Compiled) -> None:
        Eager.__init__(self, compiled.model)
        self._cache, self._step = compiled._cache, compiled._step

    def __call__(self, count: int) -> list[float]:
        """See `Eager.__call__`."""
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return super().__call__(count)
