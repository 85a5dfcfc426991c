# SPDX-License-Identifier: Apache-2.0
"""`QuantoQuantizer`: what diffusers asks while it loads and saves a quantized model.

The order of the calls, and what each is given, is written in the docstrings, because diffusers writes it nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from quanto.hosts.files import check_files
from quanto.hosts.layers import parse_layers
from quanto.hosts.upstream import CODES
from quanto.nn import QModule

from . import skeleton
from .config import QuantoConfig
from .finish import dequantize, finish
from .saving import in_memory, is_on_disk, without_adapters
from .selection import select
from .translation import Translation

__all__ = ["QuantoQuantizer"]


class QuantoQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Loads and saves models with quanto.

    Args:
        quantization_config: a `QuantoConfig`, or diffusers' own.
        **kwargs: `pre_quantized`, whether the checkpoint says that it is quantized. `from_single_file` does not say it:
            there, and wherever the tensors say otherwise, the tensors are believed.
    """

    requires_calibration = False
    required_packages = ("accelerate",)
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(QuantoConfig.of(quantization_config), **kwargs)
        self.dtype = torch.float32
        self.quantized: list[tuple[str, QModule]] = []
        self.checkpoint_files: list[str] = []
        self.device_map: Mapping[str, Any] | None = None
        self._keys: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._translation: Translation | None = None

    # -- before loading, in this order ---------------------------------------------------------------------------------

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """First of all, and again with the final device map once the model is a skeleton."""
        device_map = kwargs.get("device_map")
        if isinstance(device_map, Mapping):
            self.device_map = device_map

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """Any floating dtype will do; it is that of activations and of what stays floating."""
        self.dtype = torch.float32 if torch_dtype is None else torch_dtype
        return self.dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        """The names in the checkpoint. There is no model yet: the list is translated in place once there is one."""
        files = checkpoint_files if isinstance(checkpoint_files, (list, tuple)) else [checkpoint_files]
        self.checkpoint_files = check_files([file for file in files if file is not None])
        self._keys = list(loaded_keys)
        return self._keys

    def _process_model_before_weight_loading(
        self, model: Any, keep_in_fp32_modules: Collection[str] = (), state_dict: Any = None, **kwargs: Any
    ) -> None:
        """The model is on the meta device.

        Args:
            model: the float model.
            keep_in_fp32_modules: parts of paths that are loaded in float32.
            state_dict: from `from_single_file` only: all of its tensors, by their names in diffusers.
            **kwargs: `device_map`, which is not final yet.
        """
        if self._held:
            for name in skeleton.hold_back(self._held)[0]:
                state_dict.pop(name, None)
            state_dict.update(self._held)
            self._held = {}
        keys = self._keys if state_dict is None else list(state_dict)
        self.quantized = self._skeleton(model, keys, keep_in_fp32_modules)
        translation = self._translation = Translation(self.quantized, self.dtype)
        if state_dict is not None:
            made = translation.tensors(state_dict, self._device)
            state_dict.clear()
            state_dict.update(made)
        self._keys[:] = translation.names(self._keys)
        model.register_to_config(quantization_config=self.quantization_config)

    def _skeleton(self, model: Any, keys: Collection[str], keep: Collection[str]) -> list[tuple[str, QModule]]:
        config = self.quantization_config
        if config.modules is not None:
            self.pre_quantized = True
            return skeleton.rebuild(model, parse_layers(config.modules), self.dtype)
        if any(key.endswith(CODES) for key in keys):
            self.pre_quantized = True
            if config.weights is None:
                raise ValueError("a checkpoint of optimum-quanto needs QuantoConfig(weights=…), its only qtype")
            return skeleton.inherit(model, config.weights, keys, self.dtype)
        coded = skeleton.coded(keys)
        if self.pre_quantized and self._keys and not coded:
            raise ValueError(
                f"{self._where()} says that it is quantized with quanto, but not which modules are, and holds no codes"
            )
        self.pre_quantized = bool(coded)
        if config.dequantize and not coded:
            raise ValueError("QuantoConfig(dequantize=True) is for models that were saved quantized; this one is float")
        chosen = select(model, config, keep, coded or None)
        return skeleton.build(chosen, self.dtype, keep, config.qat and not coded)

    def _where(self) -> str:
        return self.checkpoint_files[0] if self.checkpoint_files else "the checkpoint"

    def _device(self, name: str) -> torch.device:
        """Where to quantize a weight: where it is going to be, if that is a device that computes."""
        parts = name.split(".")
        paths = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
        found = next((self.device_map[p] for p in paths if p in self.device_map), "cpu") if self.device_map else "cpu"
        return torch.device("cpu" if found in ("disk", "meta") else found)

    # -- sizes, for a device map that is a word ------------------------------------------------------------------------

    def get_special_dtypes_update(self, model: Any, torch_dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Every parameter of a quantized weight has the dtype that it will have."""
        return {
            name: parameter.dtype
            for name, parameter in model.named_parameters()
            if self._translation is not None and self._translation.owns(name)
        }

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Parts of quantized weights that are missing are an error, which `finish` raises; nobody else complains."""
        assert self._translation is not None
        return [key for key in missing_keys if not self._translation.owns(key)]

    # -- while loading, for each file ----------------------------------------------------------------------------------

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The tensors of a file, quantized.

        `from_single_file` calls it before there is a model, and then asks whether the names are diffusers' own: with
        codes in the place of weights they would not be, so these are held back until there is one.
        """
        if self._translation is not None:
            return self._translation.tensors(state_dict, self._device)
        stand_ins, self._held = skeleton.hold_back(state_dict)
        return {**{k: v for k, v in state_dict.items() if k not in self._held}, **stand_ins}

    @property
    def supports_parallel_loading(self) -> bool:
        """The parts of an old weight lie in one file with it, and others are placed on their own."""
        return True

    def check_if_quantized_param(
        self, model: Any, param_value: Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Whether `create_quantized_param` places a tensor."""
        return self._translation is not None and self._translation.owns(param_name)

    def check_quantized_param_shape(self, param_name: str, current_param: Any, loaded_param: Any) -> bool:
        """Called where shapes differ.

        Raises:
            ValueError: naming the tensor.
        """
        raise ValueError(
            f"{self._where()}: {param_name} has shape {tuple(loaded_param.shape)} where the model needs "
            f"{tuple(current_param.shape)}"
        )

    def create_quantized_param(
        self,
        model: Any,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: Mapping[str, Tensor],
        unexpected_keys: Any = None,
        **kwargs: Any,
    ) -> None:
        """Places a tensor as it is: `param_value`, if it is floating, was cast to the model's dtype."""
        path, _, leaf = param_name.rpartition(".")
        module = model.get_submodule(path)
        value = state_dict[param_name].contiguous().to(target_device)
        if leaf in module._buffers:
            module._buffers[leaf] = value
        else:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    # -- after loading -------------------------------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """The model is on its devices."""
        assert self._translation is not None
        self._translation.undo_casts(model)
        finish(model, self.quantized, self.checkpoint_files, self._keys)
        self.quantized, self._translation = [], None
        if self.quantization_config.dequantize:
            dequantize(model)
            model.is_quantized = False
            return model
        self.quantization_config.watch(model)
        return model

    def _dequantize(self, model: Any) -> Any:
        """`model.dequantize()`: float weights that carry the quantization error."""
        return dequantize(model)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """What `save_pretrained` writes of a model's state dict, and of metadata."""
        model = self.quantization_config.model
        if model is None:
            return state_dict, {}
        if is_on_disk(model):
            with in_memory(model):
                state_dict = model.state_dict()
        return without_adapters(model, state_dict), {}

    # -- what a quantized model can do ---------------------------------------------------------------------------------

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True
