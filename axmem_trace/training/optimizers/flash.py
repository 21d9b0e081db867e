"""flashoptim's optimizers: 8-bit states in groups of 32, and a correction that adds bits to half-precision weights."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.rebuilt import LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import ParamGroups, Request, to_bool
from axmem_trace.training.optimizers.traced import TracedOptimizer

_GROUP = 32
"""Elements that share one fp16 scale (flashoptim 0.1.4, optimizers.py, `quantize`)."""


class FlashOptimizer(RebuiltOptimizer):
    """flashoptim 0.1.4, optimizers.py, `FlashOptimizer._ensure_state_initialized` and `_do_step`.

    In the first step, each state is made in full precision, then quantised, and the full-precision state is dropped.
    The fused kernels have no workspace. SGD without momentum has no fused kernel and uses fp32 copies.
    """

    def __init__(self, groups: ParamGroups, states: tuple[str, ...], *, quantise: bool, master_bytes: int) -> None:
        super().__init__(groups)
        self._states, self._quantise, self._master_bytes = states, quantise, master_bytes

    def _update(self) -> None:
        for _, parameter, state in self._with_gradient():
            for name in self._states:
                if name not in state:
                    state[name] = self._new_state(parameter, signed=name != "exp_avg_sq")
            missing = self._master_bytes - parameter.element_size()
            if missing > 0 and "error_bits" not in state:
                state["error_bits"] = torch.zeros_like(parameter, dtype=torch.int8 if missing == 1 else torch.int16)
            if "exp_avg" in self._states and "step" not in state and "exp_avg_sq" in self._states:
                state["step"] = torch.tensor(0, dtype=torch.int64)
            if not self._states:
                self._plain_sgd(parameter, state)

    def _new_state(self, parameter: torch.Tensor, *, signed: bool) -> Any:
        zeros = torch.zeros_like(parameter)
        if not self._quantise:
            return zeros
        codes = torch.empty_like(zeros, dtype=torch.int8 if signed else torch.uint8)
        scales = torch.empty(-(-zeros.numel() // _GROUP), device=zeros.device, dtype=torch.float16)
        return {"quantized": codes, "scales": scales}

    @staticmethod
    def _plain_sgd(parameter: torch.Tensor, state: dict[str, Any]) -> None:
        """`FlashSGD._do_step` without momentum."""
        gradient = parameter.grad
        assert gradient is not None
        gradient = gradient.to(dtype=torch.float32)
        if "error_bits" in state:
            weight = torch.empty_like(parameter, dtype=torch.float32)
        else:
            weight = parameter.to(dtype=torch.float32)
        weight.add_(gradient, alpha=-LR)
        parameter.copy_(weight.to(parameter.dtype))
        if "error_bits" in state:
            state["error_bits"].copy_(torch.empty_like(state["error_bits"]))


def build_flash(request: Request) -> TracedOptimizer:
    """axolotl, core/builders/base.py, `_configure_optimizer`; arguments as flashoptim 0.1.4's constructors take them.

    Raises:
        ConfigError: flashoptim refuses the arguments: a correction of weights that are fp32 already.
    """
    bits = request.args.get("master_weight_bits", 24)
    bits = None if bits in (None, "None", "null") else request.arg("master_weight_bits", 24, int)
    if bits not in (None, 24, 32):
        raise ConfigError(
            "unknown master_weight_bits", key="optim_args.master_weight_bits", value=bits, accepted="24, 32, null"
        )
    if bits is not None and all(parameter.dtype == torch.float32 for _, parameter in request.trainable):
        raise ConfigError(
            f"{request.name} refuses parameters that are all fp32 (LoRA adapters are, by default) unless "
            "master_weight_bits is null",
            key="optimizer",
            value=request.name,
            remedy="set optim_args: {master_weight_bits: null}, or choose another optimizer",
        )
    states = {"adam": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",)}.get(request.name[6:10], ())
    if "sgd" in request.name and request.arg("momentum", 0.0, float) > 0:
        states = ("momentum_buffer",)
    request.note("ruled", "states as flashoptim 0.1.4, optimizers.py, makes them; its fused kernels work in place")
    return request.traced(
        FlashOptimizer(
            request.groups, states, quantise=request.arg("quantize", True, to_bool), master_bytes=(bits or 0) // 8
        )
    )
