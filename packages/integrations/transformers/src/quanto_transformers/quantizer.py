# SPDX-License-Identifier: Apache-2.0
"""`QuantoHfQuantizer`: what transformers asks while it loads, saves and trains a quantized model.

The order of the calls, and what each is given, is written in the docstrings, because transformers writes it nowhere.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer

from quanto.hosts.files import check_files
from quanto.hosts.layers import describe, parse_layers
from quanto.nn import QModule
from quanto.nn.slot import PARTS

from . import conversions, inherited, parallel, skeleton
from .adapter import let_fsdp_cut_codes, parallel_styles, watch_missing
from .config import QuantoConfig
from .finish import dequantize, finish, missing
from .selection import select
from .standins import StandIns

__all__ = ["QuantoHfQuantizer"]

_SUFFIXES = tuple(f"_{part}" for part in PARTS)


class QuantoHfQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads, saves and trains models with quanto.

    Args:
        quantization_config: a `QuantoConfig`, or transformers' own.
        **kwargs: `pre_quantized`, whether the checkpoint says that it is quantized.
    """

    requires_calibration = False
    required_packages = ("accelerate",)

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(QuantoConfig.of(quantization_config), **kwargs)
        self.stand_ins: StandIns | None = None
        self.quantized: list[tuple[str, QModule]] = []
        self.checkpoint_files: list[str] = []
        #: of a folder of optimum-quanto: what each module is called there
        self.inherited: dict[str, str] | None = None

    # -- before loading, in this order ---------------------------------------------------------------------------------

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """First of all, and again with the final device map."""
        for name in self.required_packages:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f"loading a model with quanto needs {name}: pip install {name}")
        if self.quantization_config.dequantize and not self.pre_quantized:
            raise ValueError("QuantoConfig(dequantize=True) is for models that were saved quantized; this one is float")

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Any floating dtype will do; `dtype` is that of activations and of what stays floating."""
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """The model is on the meta device, untied; `checkpoint_files` are those about to be read."""
        self.checkpoint_files = check_files(kwargs.get("checkpoint_files"))
        config = self.quantization_config
        if self.pre_quantized and config.optimum_map is not None:
            qmap = inherited.parse_map(config.optimum_map)
            found, self.inherited = inherited.layers(model, qmap, self.checkpoint_files)
            made = skeleton.rebuild(model, found)
            frozen = [re.escape(f"{name}.weight_") for name, module in made if "weight_packed" in module._parameters]
            model._keys_to_ignore_on_load_missing |= {f"^{name}" for name in frozen}
            model._keys_to_ignore_on_load_unexpected |= {inherited.UNEXPECTED}
        elif self.pre_quantized and config.modules is not None:
            made = skeleton.rebuild(model, parse_layers(config.modules))
        else:
            made = skeleton.build(select(model, config), trainable=config.qat)
        self.quantized = made
        skeleton.share_tied(model, float_names=not self.pre_quantized)
        self._plan_parallel(model)
        self.stand_ins = StandIns(made, in_state_dict=not self.pre_quantized)
        watch_missing(model, lambda names: missing(names, model, self))

    def _plan_parallel(self, model: Any) -> None:
        styles, base = parallel_styles()
        if styles is not None:
            let_fsdp_cut_codes()
            parallel.register_style(styles, base)
            for plan in (getattr(model, "_tp_plan", None), getattr(model, "_ep_plan", None)):
                if plan:
                    parallel.plan_parts(plan, self.quantized)

    def update_parallel_plan(self, model: Any, plan: dict[str, str]) -> None:
        """Done already, in a way that transformers before 5.21 has too."""

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """The model's converters of checkpoint names; transformers before 5.20 doesn't pass the model."""
        if not self.pre_quantized:
            return weight_conversions
        return conversions.for_loading(weight_conversions, self.quantized)

    # -- while loading -------------------------------------------------------------------------------------------------

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes per element; of a stand-in, what its codes and scales will take."""
        if self.stand_ins is not None and param_name in self.stand_ins:
            return self.stand_ins.size(param_name) / max(param.numel(), 1)
        return float(param.element_size())

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a float tensor of the checkpoint is for a frozen module.

        Of a saved model the answer only matters where shapes differ: yes leaves the complaint to `finish`, which says
        what the scheme needs.
        """
        if self.pre_quantized:
            return param_name.endswith(_SUFFIXES)
        return self.stand_ins is not None and param_name in self.stand_ins

    def get_quantize_ops(self) -> Any:
        """An operation for each tensor of which `param_needs_quantization` said so."""
        from .quantize_op import QuantizeOnLoad

        assert self.stand_ins is not None
        return QuantizeOnLoad(self.stand_ins)

    # -- after loading -------------------------------------------------------------------------------------------------

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """The model is tied, on its devices, and in evaluation mode."""
        finish(model, self)
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """`model.dequantize()`: float weights that carry the quantization error."""
        return dequantize(model, dtype)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """The first thing that saving asks, before the config is written: it will say what the model is now."""
        if not getattr(model, "_hf_peft_config_loaded", False):
            model.config.quantization_config.modules = [layers.to_dict() for layers in describe(model)]
        return None, {}

    # -- what a quantized model can do ---------------------------------------------------------------------------------

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained on it."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether its own weights are trainable."""
        return bool(self.quantization_config.qat)

    @property
    def is_compileable(self) -> bool:
        return True
