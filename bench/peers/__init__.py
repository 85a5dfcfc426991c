# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantization of the same model, each with its bits per weight; imported only when measured.

`pip install --no-deps` them beside this project's torch: optimum-quanto torchao bitsandbytes hqq ggml-py gguf, and for
GPTQ and AWQ llmcompressor compressed-tensors auto-round loguru datasets pyarrow dill xxhash multiprocess pandas.
GPTQModel is not among them: the present one (7.7) requires torch 2.14.

Where a library only stores weights, it decodes them and the model runs on as a float one: what is measured is the
format and how its codes were chosen, not a kernel. Where activations are quantized too, the library's modules run.
"""

from __future__ import annotations

from .bnb import BITSANDBYTES
from .ggml_codes import GGML
from .hqq_codes import HQQ
from .llm_compressor import LLM_COMPRESSOR
from .optimum import OPTIMUM
from .torchao_codes import TORCHAO
from .weights import Peer

__all__ = ["PEERS", "Peer"]

#: label -> what quantizes a float model in place with calibration batches, and says its bits per weight
PEERS: dict[str, Peer] = {**OPTIMUM, **TORCHAO, **BITSANDBYTES, **HQQ, **GGML, **LLM_COMPRESSOR}
