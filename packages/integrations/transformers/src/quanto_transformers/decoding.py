# SPDX-License-Identifier: Apache-2.0
"""`decode_ahead`: a loop for `generate` that never waits for the device, for models whose tokens take milliseconds.

On GPUs transformers asks after each token whether all texts have ended, and so waits for the device, which then waits
for the host to prepare the next token: guards of torch.compile, masks, a graph's launch, a millisecond in all. Here the
answer is read one token late. A text that ends costs one forward pass more, whose token nobody sees.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from .grouped import grouped

__all__ = ["decode_ahead"]


@torch.no_grad()
def decode_ahead(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    *,
    streamer: Any = None,
    early: bool = False,
    **given: Any,
) -> Any:
    """What `generate(…, custom_generate=decode_ahead)` calls: the texts of transformers' own loop, sooner.

    Compiled, each new token attends to the cache without copies of it (`quanto_transformers.grouped`), which rounds
    otherwise. Where texts that are sampled end by a token, one sample more is drawn than in transformers' loop, so that
    later ones differ with the same seed. What else `generate` may return, encoders and a cache of the caller are left
    to that loop.

    `generate` tells its loop neither of a `streamer` nor of an `assistant_model` nor of `synced_gpus`. Give a streamer
    here too: `custom_generate=functools.partial(decode_ahead, streamer=streamer)`; the others are not for this loop.

    Args:
        model: that generates.
        input_ids: int64 `[texts, tokens]`, padded on the left.
        logits_processor, stopping_criteria, generation_config: as `generate` prepares them.
        streamer: gets each token, one late, and the end.
        early: compiles with kernels that begin before the one ahead has ended, where this torch has them (experimental)
            and the GPU, Hopper or later, a backend's own among them (see `quanto_transformers.early`); the results are
            equal but for rounding. Not with a `compile_config`.
        **given: of the forward pass.

    Returns:
        int64 `[texts, tokens]`; or what transformers' loop returns.

    Raises:
        ValueError: with beams, `prompt_lookup_num_tokens`, a `compile_config` beside `early`, or a model whose ranks
            must take as many steps each (FSDP, ZeRO-3).
    """
    config = generation_config
    _check(model, config, early)
    if _left(model, config, given):
        return model._sample(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=config,
            streamer=streamer,
            **given,
        )
    forward: Any = model.__call__
    attention: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if model._valid_auto_compile_criteria(given, config):
        forward = model.get_compiled_call(
            _early() if early and _begins_early(input_ids.device) else config.compile_config
        )
        attention = grouped(model)
    padding = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad = config._pad_token_tensor.to(input_ids.device) if padding else None
    going = torch.ones(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
    limit = stopping_criteria.max_length
    late = _Late(input_ids, streamer)
    outputs = model._prefill(input_ids, config, given)
    with model._optimize_model_for_decode(), attention:
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
            if late(going.max() == 0, tokens):
                late.end(with_last=False)
                return input_ids[:, :-1]
            if limit is not None and input_ids.shape[1] >= limit:
                late.end(with_last=True)
                return input_ids
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **given)
            outputs = forward(**inputs, return_dict=True)


def _check(model: Any, config: Any, early: bool) -> None:
    """Raises ValueError, naming it, for what this loop would drop or do wrongly."""
    if config.num_beams > 1:
        raise ValueError(f"decode_ahead takes the likeliest token or samples one; num_beams is {config.num_beams}")
    if getattr(config, "prompt_lookup_num_tokens", None):
        raise ValueError(
            f"decode_ahead guesses no tokens; prompt_lookup_num_tokens is {config.prompt_lookup_num_tokens}"
        )
    if early and config.compile_config is not None:
        raise ValueError("early=True chooses options of torch.compile, and compile_config is given, too")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
        from transformers.integrations.fsdp import is_fsdp_managed_module

        if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model):
            raise ValueError("decode_ahead ends each rank by itself, and FSDP and ZeRO-3 (synced_gpus) wait for all")


def _left(model: Any, config: Any, given: dict[str, Any]) -> bool:
    """Whether transformers' own loop generates."""
    from transformers.generation.utils import ALL_CACHE_NAMES

    callers = any(getattr(given.get(name), "_is_user_defined", False) for name in ALL_CACHE_NAMES)
    kept = config.return_dict_in_generate or callers or not given.get("use_cache")
    return bool(kept or model.config.is_encoder_decoder or config.is_assistant)


def _begins_early(device: torch.device) -> bool:
    import torch._inductor.config as inductor

    known = hasattr(inductor.triton, "enable_pdl") and torch.version.hip is None
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _early() -> Any:
    """CUDA graphs, as transformers asks for, dependent launch, and a backend's kernels for what is between products."""
    from transformers import CompileConfig

    from .early import EarlyPass

    return CompileConfig(
        mode=None,
        options={
            "triton.cudagraphs": True,
            "triton.enable_pdl": True,
            "post_grad_custom_pre_pass": EarlyPass(),
        },
    )


class _Late:
    """Reads flags and tokens of a device, each one call late; what was computed before a call has then ended."""

    def __init__(self, input_ids: Tensor, streamer: Any) -> None:
        device, texts = input_ids.device, input_ids.shape[0]
        pinned = device.type == "cuda"
        self._streamer = streamer
        self._flags = [torch.zeros((), dtype=torch.bool, pin_memory=pinned) for _ in range(2)]
        self._tokens = [torch.zeros(texts, dtype=torch.long, pin_memory=pinned) for _ in range(2)]
        self._events = None if device.type == "cpu" else [torch.Event(device, blocking=True) for _ in range(2)]
        self._calls = 0

    def __call__(self, flag: Tensor, tokens: Tensor) -> bool:
        """The flag of the call before, whose tokens are streamed; False at the first."""
        now, before = self._calls % 2, 1 - self._calls % 2
        self._calls += 1
        self._flags[now].copy_(flag, non_blocking=True)
        if self._streamer is not None:
            self._tokens[now].copy_(tokens, non_blocking=True)
        if self._events is not None:
            self._events[now].record()
        if self._calls > 1:
            self._put(before)
        return bool(self._flags[before])

    def end(self, with_last: bool) -> None:
        """Streams the last tokens, unless they came after the end."""
        if self._streamer is not None:
            if with_last:
                self._put(1 - self._calls % 2)
            self._streamer.end()

    def _put(self, slot: int) -> None:
        if self._events is not None:
            self._events[slot].synchronize()
        if self._streamer is not None:
            self._streamer.put(self._tokens[slot].clone())
