# SPDX-License-Identifier: Apache-2.0
"""Tiny models of many families, built here: no hub is asked."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 320, "max_position_embeddings": 128, "num_key_value_heads": 2, "head_dim": 16}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

#: name -> (class, config's class, its arguments)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, **IDS}),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, **IDS, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**TEXT, **IDS}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**TEXT, **IDS, "sliding_window": 32}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 320, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, **IDS},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**SIZES, "vocab_size": 320, "ffn_dim": 96, "max_position_embeddings": 128, "word_embed_proj_dim": 64, **IDS},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, **IDS}
        | {"decoder_start_token_id": 0},
    ),
    "bert": ("BertModel", "BertConfig", {**SIZES, "vocab_size": 320, "max_position_embeddings": 128}),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {"vocab_size": 320, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 16}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
        | {"max_source_positions": 32, "max_target_positions": 64, "decoder_start_token_id": 3, **IDS}
        | {"suppress_tokens": None, "begin_suppress_tokens": None},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**SIZES, "image_size": 32, "patch_size": 8, "num_labels": 5}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**TEXT, **IDS, **EXPERTS}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**TEXT, **IDS, **EXPERTS}),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", {**TEXT, **IDS, **EXPERTS, "sliding_window": 32}),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            **TEXT,
            **IDS,
            **EXPERTS,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 1,
        }
        | {"attention_chunk_size": 64},
    ),
}
CAUSAL = [name for name, (cls, _, _) in MODELS.items() if cls.endswith(("ForCausalLM", "LMHeadModel"))]
MOE = ["mixtral", "qwen3-moe", "gpt-oss", "llama4"]


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with random weights of the size of trained ones, in evaluation mode."""
    cls, config_cls, arguments = MODELS[name]
    config = getattr(transformers, config_cls)(**{**arguments, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, cls)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.6 * parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()


def inputs(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Something for the model to read."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 320, (2, 12), generator=generator)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator).to(dtype)}
    if name == "whisper":
        features = torch.randn(2, 16, 64, generator=generator).to(dtype)
        return {"input_features": features, "decoder_input_ids": ids}
    if name == "t5":
        return {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    return {"input_ids": ids}


@torch.no_grad()
def run(model: Any, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The model's first output."""
    moved = {k: v.to(model.device) for k, v in inputs(name, dtype).items()}
    out = model(**moved)
    return out.logits if hasattr(out, "logits") else out[0]


def auto_class(name: str) -> Any:
    """The Auto class that loads the model of that name."""
    kinds = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModel", "vit": "AutoModelForImageClassification"}
    kinds["whisper"] = "AutoModelForSpeechSeq2Seq"
    return getattr(transformers, kinds.get(name, "AutoModelForCausalLM"))
