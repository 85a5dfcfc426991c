# SPDX-License-Identifier: Apache-2.0
r"""Trains a small language model from text that every Python carries, so that anyone can rebuild the tables.

`python -m bench.train_language` takes a few minutes of one core and writes to `.cache/bench/language`: `model`, a Llama
with its tokenizer, never quantized before; `held-out.txt`, to measure on, and `sample.txt`, to calibrate with. Then

    python -m bench.accuracy .cache/bench/language/model --text .cache/bench/language/held-out.txt \
        --calibration .cache/bench/language/sample.txt --block 256 --blocks 64

The text is the reference of the language in `pydoc_data` and the docstrings of the standard library. Seeded: the same
model each time on one machine. `--hidden 512 --layers 8 --steps 6000 --device cuda` makes a larger one.
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["FOLDER", "texts", "train"]

FOLDER = Path(__file__).parents[1] / ".cache" / "bench" / "language"
HELD_OUT, SAMPLE = 10, 3  # one text in so many


def texts() -> tuple[list[str], list[str], list[str]]:
    """Texts to train on, those of them to calibrate with, and texts that are held out."""
    every = [*import_module("pydoc_data.topics").topics.values(), *_docstrings()]
    every = [text for text in dict.fromkeys(every) if len(text) > 200]
    train = [text for i, text in enumerate(every) if i % HELD_OUT]
    return train, train[::SAMPLE], every[::HELD_OUT]


def _docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, classes and functions, read and not run."""
    for path in sorted(Path(ast.__file__).parent.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # examples of what is wrong
            continue
        found = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, _DOCUMENTED)]
        yield "\n\n".join(text for text in found if text)


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def tokenizer(corpus: list[str], vocabulary: int) -> Any:
    """A byte-level BPE of the corpus."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(corpus, vocabulary, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<eos>", model_max_length=10**9)


def train(tokens: Tensor, vocabulary: int, options: argparse.Namespace) -> Any:
    """Next-token prediction with AdamW and one cycle of learning rates, in random blocks of the tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 128),
        max_position_embeddings=options.block,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), options.rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps)
    start = time.perf_counter()
    for step in range(options.steps):
        first = torch.randint(len(tokens) - options.block, (options.batch, 1))
        batch = tokens[first + torch.arange(options.block)].to(options.device)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            seconds = time.perf_counter() - start
            print(f"step {step} of {options.steps}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    """Reads the arguments, trains, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="where to write")
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 128")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--block", type=int, default=256, help="tokens that the model sees at once")
    parser.add_argument("--batch", type=int, default=8, help="blocks of a step")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    corpus, sample, held_out = texts()
    made = tokenizer(corpus, options.vocabulary)
    ids = made(corpus)["input_ids"]
    tokens = torch.tensor([token for text in ids for token in (*text, made.eos_token_id)])
    print(
        f"{sum(map(len, corpus)):,} characters of Python {sys.version.split()[0]}, {len(tokens):,} tokens", flush=True
    )
    model = train(tokens, len(made), options)
    print(f"{model.num_parameters():,} parameters, to {options.out}")
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(options.out / "model")
    made.save_pretrained(options.out / "model")
    for name, part in (("sample", sample), ("held-out", held_out)):
        (options.out / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")


if __name__ == "__main__":
    main()
