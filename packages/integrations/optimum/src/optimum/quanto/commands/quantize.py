# SPDX-License-Identifier: Apache-2.0
"""`optimum-cli quanto quantize`: from a float model to a folder that `QuantizedModelForCausalLM` reads."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

__all__ = ["add_arguments", "run"]

_LIBRARIES = ["transformers"]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the arguments, those of optimum-quanto."""
    required = parser.add_argument_group("Required arguments")
    required.add_argument("output", help="Folder of the quantized model.")
    required.add_argument("-m", "--model", required=True, help="Folder of a model, or its name on the hub.")
    required.add_argument(
        "--weights", default="int8", choices=["int2", "int4", "int8", "float8"], help="Type of weights (default int8)."
    )
    optional = parser.add_argument_group("Optional arguments")
    optional.add_argument("--revision", help="Revision of the model on the hub.")
    optional.add_argument("--trust_remote_code", action="store_true", help="Run code that comes with the model.")
    optional.add_argument("--library", choices=_LIBRARIES, help="Library of the model; found from its files.")
    optional.add_argument("--task", help="Task of the model, for models of several; found from its files.")
    optional.add_argument(
        "--torch_dtype", default="auto", choices=["auto", "fp16", "bf16"], help="Type of float weights (default auto)."
    )
    optional.add_argument("--device", default="cpu", help="Where to load the model (default cpu).")


def run(args: Namespace) -> None:
    """Loads, quantizes and saves.

    Raises:
        ValueError: for a model of another library than transformers.
    """
    import torch
    from optimum.exporters.tasks import TasksManager

    from optimum.quanto import QuantizedTransformersModel

    library = args.library or TasksManager.infer_library_from_model(args.model, revision=args.revision)
    if library not in _LIBRARIES:
        raise ValueError(f"{args.model} is a model of {library}; the command takes {', '.join(_LIBRARIES)}, Python any")
    options = {"revision": args.revision, "trust_remote_code": args.trust_remote_code}
    dtype = {"auto": "auto", "fp16": torch.float16, "bf16": torch.bfloat16}[args.torch_dtype]
    kind = None if args.task else _class_of(args.model, options)
    if kind is not None:
        model = kind.from_pretrained(args.model, dtype=dtype, **options).to(args.device)
    else:
        task = args.task or TasksManager.infer_task_from_model(args.model, revision=args.revision)
        model = TasksManager.get_model_from_task(
            task,
            args.model,
            framework="pt",
            torch_dtype=dtype,
            device=torch.device(args.device),
            library_name=library,
            **options,
        )
    QuantizedTransformersModel.quantize(model, weights=f"q{args.weights}").save_pretrained(args.output)


def _class_of(model: str, options: dict[str, Any]) -> Any:
    """The class that the config of a model names; None if transformers has no such class."""
    import transformers

    names = transformers.AutoConfig.from_pretrained(model, **options).architectures or [""]
    return getattr(transformers, names[0], None)
