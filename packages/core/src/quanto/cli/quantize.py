# SPDX-License-Identifier: Apache-2.0
"""`quanto quantize`: a float checkpoint becomes a quantized one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from ..scheme import Rule, Scheme
from ..serialization.manifest import FILE as MANIFEST
from .options import are_steps, read_rules, read_scheme, read_tokens, split_words

if TYPE_CHECKING:
    from ..algorithms import Pipeline

__all__ = ["quantize"]


def quantize(
    model: Annotated[Path, typer.Argument(help="A folder of safetensors files, one such file, or a name on a hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    weights: Annotated[str, typer.Option(help="Data type of the weights, or a preset such as w8a8.")] = "",
    algorithm: Annotated[
        str,
        typer.Option(help="How scales and codes are chosen; or steps that run the model, such as awq,gptq or best."),
    ] = "",
    group_size: Annotated[int, typer.Option(min=0, help="Weights that share a scale; 0: the data type's own.")] = 0,
    rules: Annotated[Path | None, typer.Option(help="A TOML or JSON file of rules for single modules.")] = None,
    exclude: Annotated[list[str], typer.Option(help="Modules to leave floating: a glob; may be repeated.")] = [],  # noqa: B006
    data: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A text for such steps; without, the model draws its own."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences to calibrate on.")] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each.")] = 512,
    shard_size: Annotated[str, typer.Option(help="Largest size of a file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Quantize a float checkpoint, tensor by tensor; the same call goes on after a kill."""
    from ..algorithms import Pipeline
    from ..serialization.foreign import fetch

    start = time.perf_counter()
    listed, skipped = read_rules(rules), split_words(exclude)
    steps = split_words([algorithm])
    model = fetch(model)
    if (model / MANIFEST).is_file():
        raise ValueError(f"{model} holds a quantized model: give the float one that it was made from")
    if data is None and not are_steps(steps):
        scheme = read_scheme(weights, algorithm, group_size)
        _some(scheme, listed)
        if any(s is not None and s.dynamic is False for s in (scheme, *(rule.scheme for rule in listed))):
            raise ValueError(
                "static activations need sample data: give --data TEXT, or steps such as --algorithm smooth"
            )
        result = _stream(model, output, scheme, listed, skipped, shard_size)
    else:
        scheme = read_scheme(weights, "", group_size)
        _some(scheme, listed)
        size, pipeline = (samples, length), Pipeline(*(steps or ["gptq"]))
        result = _calibrate(model, output, scheme, listed, skipped, shard_size, data, size, pipeline)
    result |= {"output": str(output), "seconds": round(time.perf_counter() - start, 2)}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    also = "".join(f", {name}" for name in result["formats"])
    typer.echo(
        f"{output}: {result['modules']} modules quantized, {result['bytes_before']:,} bytes became "
        f"{result['bytes']:,} ({result['bytes'] / result['bytes_before']:.0%}) in {result['seconds']} s; "
        f"loads with quanto.load{also}"
    )


def _some(scheme: Scheme | None, rules: list[Rule]) -> None:
    if scheme is None and not rules:
        raise ValueError("say what to quantize to: --weights int4, or --rules FILE")


def _stream(
    model: Path, output: Path, scheme: Scheme | None, rules: list[Rule], exclude: list[str], shard_size: str
) -> dict[str, Any]:
    from ..serialization.convert import choose, convert, finish
    from ..serialization.foreign import complete, known_layers
    from ..serialization.sources import Source

    source = Source.open(model)
    layers = known_layers(source.folder) if model.is_dir() else None
    chosen = choose(source, scheme, rules, exclude, layers)
    manifest = convert(source, output, chosen, shard_size=shard_size)
    formats = complete(source.folder, output, manifest) if model.is_dir() else []
    finish(output, manifest)
    return _summary(sum(info.nbytes for info in source.infos.values()), manifest, formats)


def _calibrate(
    model: Path,
    output: Path,
    scheme: Scheme | None,
    rules: list[Rule],
    exclude: list[str],
    shard_size: str,
    data: Path | None,
    size: tuple[int, int],
    pipeline: Pipeline,
) -> dict[str, Any]:
    from .._progress import track
    from ..algorithms import generate_samples
    from ..calibrating import Calibration
    from ..model import quantize as mark
    from ..nn.base import QModule
    from ..serialization.convert import JOURNAL, copy_beside
    from ..serialization.foreign import complete, known_layers, open_model
    from ..serialization.manifest import Manifest
    from ..serialization.save import save

    if (output / MANIFEST).exists():
        raise ValueError(f"{output} holds a quantized model already: remove it, or name another folder")
    _begin(model, output)
    opened, encode = open_model(model)
    samples, length = size
    if data is None:
        batches = generate_samples(opened, samples, length, batch_size=1)
    else:
        tokens = read_tokens(data, encode, length, samples * length)
        batches = [block.unsqueeze(0) for block in tokens[: len(tokens) // length * length].view(-1, length)]
    layers = known_layers(model)
    include = None if layers is None or scheme is None else list(layers)
    before = sum({t.data_ptr(): t.nbytes for t in opened.state_dict().values()}.values())
    mark(opened, scheme=scheme, rules=rules, include=include, exclude=exclude)
    with torch.no_grad():
        pipeline.run(opened, batches, resume=output / "quanto.calibration")
        if any(isinstance(m, QModule) and m._slots and m.scheme.dynamic is False for m in opened.modules()):
            with Calibration():
                for batch in track(batches, "calibrate"):
                    opened(batch)
    copy_beside(model, output)
    save(opened, output, shard_size=shard_size)
    manifest = Manifest.read(output)
    formats = complete(model, output, manifest)
    (output / JOURNAL).unlink()
    return _summary(before, manifest, formats)


def _begin(model: Path, output: Path) -> None:
    """Makes the folder, or recognizes that of the same model, which a kill left unfinished."""
    from ..serialization.convert import JOURNAL, check_room
    from ..serialization.folder import replace_text

    journal, mine = output / JOURNAL, f"calibrated from {model.resolve()}\n"
    if journal.exists():
        if journal.read_text(encoding="utf-8") != mine:
            raise ValueError(f"{output} holds an unfinished model of another source or options: remove it")
        return
    check_room(model, output)
    output.mkdir(parents=True, exist_ok=True)
    replace_text(journal, mine)


def _summary(before: int, manifest: Any, formats: list[str]) -> dict[str, Any]:
    schemes: dict[str, int] = {}
    for entry in manifest.modules.values():
        name = str(Scheme.from_dict(entry["scheme"]))
        schemes[name] = schemes.get(name, 0) + 1
    return {
        "modules": len(manifest.modules),
        "schemes": schemes,
        "bytes_before": before,
        "bytes": sum(size for _, size in manifest.shards),
        "files": [name for name, _ in manifest.shards],
        "formats": formats,
    }
