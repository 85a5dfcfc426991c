# SPDX-License-Identifier: Apache-2.0
"""`quanto quantize`: a float checkpoint becomes a quantized one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .._text import read_text
from ..scheme import Rule, Scheme
from ..serialization.manifest import FILE as MANIFEST
from .options import are_steps, read_rules, read_scheme, split_words
from .output import print_json

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
    samples: Annotated[int | None, typer.Option(min=1, help="Sequences to calibrate on; default: 64.")] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens in each; default: 512, or what the model takes.")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="Largest size of a file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Quantize a float checkpoint, tensor by tensor; the same call goes on after a kill."""
    from ..algorithms import Pipeline
    from ..serialization.foreign import fetch
    from .calibrated import Job, calibrate

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
        for name, value in (("--samples", samples), ("--length", length)):
            if value is not None:
                raise ValueError(f"{name} is for steps that run the model: give --data TEXT, or --algorithm gptq")
        result = _stream(model, output, scheme, listed, skipped, shard_size)
    else:
        scheme = read_scheme(weights, "", group_size)
        _some(scheme, listed)
        pipeline = Pipeline(*(steps or ["gptq"]))
        count = 64 if samples is None else samples
        text = None if data is None else read_text(data)
        job = Job(model, output, scheme, listed, skipped, shard_size, data, text, count, length, pipeline)
        result = _summary(*calibrate(job))
    result |= {"output": str(output), "seconds": round(time.perf_counter() - start, 2)}
    if as_json:
        print_json(result)
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
    from ..serialization.folder import claimed
    from ..serialization.foreign import complete, known_layers
    from ..serialization.sources import Source

    source = Source.open(model)
    layers = known_layers(source.folder) if model.is_dir() else None
    chosen = choose(source, scheme, rules, exclude, layers)
    with claimed(output):
        manifest = convert(source, output, chosen, shard_size=shard_size)
        formats = complete(source.folder, output, manifest) if model.is_dir() else []
        finish(output, manifest)
    return _summary(sum(info.nbytes for info in source.infos.values()), manifest, formats)


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
