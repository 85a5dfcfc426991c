# SPDX-License-Identifier: Apache-2.0
"""`decode_ahead`: a loop for `generate` that never waits for the device, for models whose tokens take milliseconds.

transformers asks after each token whether all texts have ended, and so waits for the device, which then waits for the
host to prepare the next token: guards of torch.compile, masks, a graph's launch, a millisecond in all. Here the answer
is read one token late. A text that ends costs one forward pass more, whose token nobody sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["decode_ahead"]


@torch.no_grad()
def decode_ahead(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **given: Any
) -> Any:
    """What `generate(…, custom_generate=decode_ahead)` calls: the texts of transformers' own loop, sooner.

    Whatever else `generate` may return, encoders and a cache of the caller are left to the loop of transformers, which
    gives no `streamer` to any other.

    Args:
        model: that generates.
        input_ids: int64 `[texts, tokens]`, padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` prepares them.
        **given: of the forward pass.

    Returns:
        int64 `[texts, tokens]`; or what transformers' loop returns.

    Raises:
        ValueError: with beams.
    """
    config = generation_config
    if config.num_beams > 1:
        raise ValueError(f"decode_ahead takes the likeliest token or samples one; num_beams is {config.num_beams}")
    cache = given.get("past_key_values")
    kept = config.return_dict_in_generate or getattr(cache, "_is_user_defined", False) or not given.get("use_cache")
    if kept or model.config.is_encoder_decoder or config.is_assistant:
        return model._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=config,
            **given,
        )
    forward = model.__call__
    if model._valid_auto_compile_criteria(given, config):
        forward = model.get_compiled_call(config.compile_config)
    padding = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad = config._pad_token_tensor.to(input_ids.device) if padding else None
    going = torch.ones(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
    limit = stopping_criteria.max_length
    late = _Late(input_ids.device)
    outputs = model._prefill(input_ids, config, given)
    with model._optimize_model_for_decode():
        while True:
            given = model._update_model_kwargs_for_generation(outputs, given)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
            del outputs  # of the prompt, they may be large
            scores = logits_processor(input_ids, logits)
            if config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            if pad is not None:
                tokens = tokens * going + pad * (1 - going)
            input_ids = torch.cat([input_ids, tokens[:, None]], -1)
            going = going & ~stopping_criteria(input_ids, None)
            if late(going.max() == 0):
                return input_ids[:, :-1]
            if limit is not None and input_ids.shape[1] >= limit:
                return input_ids
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **given)
            outputs = forward(**inputs, return_dict=True)


class _Late:
    """Reads flags of a device, each one call late; what was computed before a call has then ended."""

    def __init__(self, device: torch.device) -> None:
        here = device.type == "cpu"
        self._slots = [torch.zeros((), dtype=torch.bool, pin_memory=device.type == "cuda") for _ in range(2)]
        self._events = None if here else [torch.Event(device, blocking=True) for _ in range(2)]
        self._calls = 0

    def __call__(self, flag: Tensor) -> bool:
        """The flag of the call before; False at the first."""
        now, before = self._calls % 2, 1 - self._calls % 2
        self._calls += 1
        self._slots[now].copy_(flag, non_blocking=True)
        if self._events is not None:
            self._events[now].record()
            if self._calls > 1:
                self._events[before].synchronize()
        return bool(self._slots[before])
