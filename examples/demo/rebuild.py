# SPDX-License-Identifier: Apache-2.0
"""A Llama in llama.cpp's GGUF format as plain bf16 weights in the format of transformers.

transformers reads GGUF too, but only with accelerate, and leaves a `quantization_config` on the plain model with which
it then refuses to save it (5.23.0).
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

__all__ = ["rebuild"]

# GGUF's names of a Llama's tensors and the names that transformers gives them.
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def rebuild(source: Path, folder: Path, description: str, progress: bool = True) -> None:
    """Writes configuration, tokenizer and dequantized weights.

    Args:
        source: a GGUF file of architecture `llama` with tied embeddings.
        folder: where `config.json`, `model.safetensors` and the tokenizer go.
        description: the words left of the progress bar.
        progress: whether to show one.
    """
    import gguf
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    reader = gguf.GGUFReader(source)
    field = {key.removeprefix("llama."): value.contents() for key, value in reader.fields.items()}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field["vocab_size"],
        hidden_size=field["embedding_length"],
        intermediate_size=field["feed_forward_length"],
        num_hidden_layers=field["block_count"],
        num_attention_heads=field["attention.head_count"],
        num_key_value_heads=field["attention.head_count_kv"],
        max_position_embeddings=field["context_length"],
        rms_norm_eps=field["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": field["rope.freq_base"]},
        bos_token_id=field["tokenizer.ggml.bos_token_id"],
        eos_token_id=field["tokenizer.ggml.eos_token_id"],
        pad_token_id=field["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,  # the file has no output.weight
        dtype=torch.bfloat16,
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights: dict[str, Tensor] = {}
    for tensor in track(reader.tensors, description, disable=not progress, transient=True):
        values = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        name, kind = _name(tensor.name)
        if kind in heads:
            values = _halves(values, heads[kind])
        weights[name] = values.to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    config.save_pretrained(folder)


def _name(name: str) -> tuple[str, str]:
    """Translates `blk.0.attn_q.weight` into `model.layers.0.self_attn.q_proj.weight` and `attn_q`."""
    if name in TENSORS:
        return TENSORS[name], ""
    _, layer, kind, suffix = name.split(".")
    return f"model.layers.{layer}.{TENSORS[kind]}.{suffix}", kind


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorders the rows of a query or key projection, `[heads * size, in]`.

    llama.cpp rotates neighbouring rows of a head together, transformers row i with row i + size / 2.
    """
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
