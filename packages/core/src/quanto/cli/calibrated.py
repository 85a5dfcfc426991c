# SPDX-License-Identifier: Apache-2.0
"""The half of `quanto quantize` that runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._digest import digest_of
from .._progress import track
from .._version import __version__
from ..scheme import Rule, Scheme
from ..serialization.manifest import FILE, Manifest
from .options import length_for, sequences, tokens_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..algorithms import Pipeline

__all__ = ["Job", "calibrate"]

_LENGTH = 512  # tokens of a sequence, where the model takes as many


@dataclass(frozen=True)
class Job:
    """What is wanted.

    Attributes:
        model: the float model's folder.
        output: the folder to write.
        scheme: None where rules say all.
        rules, exclude: as of `quanto.quantize`.
        shard_size: largest size of a file.
        data: where the text is from; None lets the model draw its own.
        text: what it holds.
        samples: sequences.
        length: tokens in each; None for 512, or what the model takes.
        pipeline: steps.
    """

    model: Path
    output: Path
    scheme: Scheme | None
    rules: list[Rule]
    exclude: list[str]
    shard_size: str
    data: Path | None
    text: str | None
    samples: int
    length: int | None
    pipeline: Pipeline

    def identity(self) -> str:
        """The same for the same call."""
        steps = [(type(step).__name__, sorted(vars(step).items())) for step in self.pipeline.steps]
        options = self.scheme, self.rules, self.exclude, self.shard_size, self.samples, self.length
        files = [f for f in sorted(self.model.iterdir()) if f.is_file()] if self.model.is_dir() else []
        source = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return digest_of(__version__, str(self.model.resolve()), source, *options, steps, self.text)


def calibrate(job: Job) -> tuple[int, Manifest, list[str]]:
    """Quantizes a model by its steps; a killed call goes on behind the last finished block, or what came after.

    Returns:
        The float model's bytes, what was written, and the formats that read it beside quanto.

    Raises:
        ValueError: if the folder can't take the model, no package runs it, or data and model don't fit.
    """
    from ..algorithms.resume import clear
    from ..serialization.convert import JOURNAL, begin
    from ..serialization.folder import claimed
    from ..serialization.foreign import complete, open_model

    blocks = job.output / "quanto.calibration"
    with claimed(job.output):
        if blocks.exists() and not (job.output / JOURNAL).exists():
            raise ValueError(f"{blocks} is of another run: remove it, or name another folder for the output")
        begin(job.model, job.output, job.identity())
        try:
            opened, encode = open_model(job.model)
            before = sum({t.data_ptr(): t.nbytes for t in opened.state_dict().values()}.values())
            if not (job.output / FILE).exists():
                _run(job, opened, _batches(job, opened, encode), blocks)
        except BaseException:  # nothing is finished, and the next call may have other options
            if not any(blocks.glob("block-*.pt")) and not (job.output / FILE).exists():
                clear(blocks)
                (job.output / JOURNAL).unlink()
            raise
        manifest = Manifest.read(job.output)
        formats = complete(job.model, job.output, manifest)
        clear(blocks)
        (job.output / JOURNAL).unlink()
    return before, manifest, formats


def _batches(job: Job, model: nn.Module, encode: Any) -> list[Tensor]:
    from ..algorithms import generate_samples

    length = length_for(model, job.length, _LENGTH, "--length")
    if job.data is None or job.text is None:
        return list(generate_samples(model, job.samples, length, batch_size=1))
    return sequences(tokens_of(job.text, job.data, encode, length, job.samples * length), length)


@torch.no_grad()
def _run(job: Job, model: nn.Module, batches: list[Tensor], blocks: Path) -> None:
    from ..calibrating import Calibration
    from ..model import quantize
    from ..nn.base import QModule
    from ..serialization.convert import copy_beside
    from ..serialization.foreign import known_layers
    from ..serialization.save import save

    layers = known_layers(job.model)
    include = None if layers is None or job.scheme is None else list(layers)
    quantize(model, scheme=job.scheme, rules=job.rules, include=include, exclude=job.exclude)
    job.pipeline.run(model, batches, resume=blocks, keep=True, offload_folder=blocks)
    if any(isinstance(m, QModule) and m._slots and m.scheme.dynamic is False for m in model.modules()):
        with Calibration():
            for batch in track(batches, "calibrate"):
                model(batch)
    copy_beside(job.model, job.output)
    save(model, job.output, shard_size=job.shard_size)
