"""torchao's low-bit AdamW, and axolotl's SinkGD, which uses it for some parameters.

Both compile their update for each parameter (`torch.compile(fullgraph=True)`). Elementwise operations and block
reductions are then fused into kernels that write the states in place. So the fp32 copies in their Python code are not
allocated, only the new block scales. This is a rule, not a trace: if Inductor splits the graph, one more buffer of a
tensor is possible.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.rebuilt import LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import ParamGroups, Request, to_bool
from axmem_trace.training.optimizers.traced import TracedOptimizer

Kind = Literal["4bit", "8bit", "fp8"]
_MINIMUM_ELEMENTS = 4096
"""Smaller tensors keep states in their own dtype (torchao/optim/adam.py, `_AdamBase._new_buffer`)."""
_QMAP_ENTRIES = {"4bit": 16, "8bit": 256, "fp8": 0}


def new_buffer(parameter: torch.Tensor, kind: Kind, block_size: int) -> Any:
    """One state: codes, one fp32 scale for each block and a separate copy of the lookup table; or a plain tensor.

    Source: torchao 0.17.0, optim/adam.py, `_AdamBase._new_buffer`; optim/subclass_{4bit,8bit,fp8}.py, `zeros`.
    """
    elements, device = parameter.numel(), parameter.device
    if elements < _MINIMUM_ELEMENTS or elements % block_size:
        return torch.zeros_like(parameter)
    shape = (elements // 2,) if kind == "4bit" else parameter.shape
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.uint8
    state = {
        "codes": torch.zeros(shape, dtype=dtype, device=device),
        "scale": torch.zeros(elements // block_size, device=device),
    }
    if _QMAP_ENTRIES[kind]:
        state["qmap"] = torch.zeros(_QMAP_ENTRIES[kind], dtype=torch.float32, device=device)
    return state


def adam_update(state: dict[str, Any]) -> None:
    """optim/adam.py, `single_param_adam`, compiled: it allocates only the new scales of the blocks."""
    state["step"] += 1
    scales = [moment["scale"] for moment in (state["exp_avg"], state["exp_avg_sq"]) if isinstance(moment, dict)]
    _fresh = [torch.empty_like(scale) for scale in scales]


class LowBitAdamW(RebuiltOptimizer):
    """torchao 0.17.0, optim/adam.py, `_AdamBase.step`."""

    def __init__(self, groups: ParamGroups, kind: Kind, block_size: int) -> None:
        super().__init__(groups)
        self._kind: Kind = kind
        self._block_size = block_size

    def _update(self) -> None:
        for _, parameter, state in self._with_gradient():
            self._adam(parameter, state)

    def _adam(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = new_buffer(parameter, self._kind, self._block_size)
            state["exp_avg_sq"] = new_buffer(parameter, self._kind, self._block_size)
        adam_update(state)


class SinkGD(LowBitAdamW):
    """axolotl, utils/optimizers/sinkgd.py, `SinkGD.step`: matrices have no state (except a power-iteration vector with
    `sinkgd_spectral_norm`, and a norm with `sinkgd_md_sphere`). All other parameters use 8-bit AdamW.

    The update of a matrix alternates row and column norms on copies of the gradient in its dtype: one copy is read and
    one is written. The Triton kernels (`sinkgd_fused_kernel`) work in one buffer, and also need fp32 vectors.
    """

    def __init__(self, groups: ParamGroups, *, iterations: int, spectral: bool, sphere: bool, fused_from: int) -> None:
        super().__init__(groups, "8bit", 256)
        self._iterations, self._fused_from = iterations, fused_from
        self._spectral, self._sphere = spectral or sphere, sphere

    def _update(self) -> None:
        for group, parameter, state in self._with_gradient():
            if group["use_sinkgd"]:
                self._sinkhorn(parameter, state)
            else:
                self._adam(parameter, state)

    def _sinkhorn(self, parameter: torch.Tensor, state: dict[str, Any]) -> None:
        lead, columns = parameter.shape[:-2], parameter.shape[-1]
        if self._sphere and "norm" not in state:
            state["norm"] = torch.linalg.vector_norm(parameter.detach().float(), dim=(-2, -1))
        if self._spectral and "vector" not in state:
            vector = torch.randn(*lead, columns, device=parameter.device, dtype=torch.float32)
            state["vector"] = vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(1e-12)
        gradient = parameter.grad
        assert gradient is not None
        if self._fused_from >= 0 and parameter.numel() >= (self._fused_from if self._spectral else 0):
            _buffer = torch.empty_like(gradient)
            _vectors = [gradient.new_empty((*lead, columns), dtype=torch.float32) for _ in range(2)]
            return
        written = gradient
        for _ in range(self._iterations):
            rows = torch.linalg.vector_norm(written, dim=-1, keepdim=True, dtype=torch.float32)
            norms = torch.linalg.vector_norm(written, dim=-2, keepdim=True, dtype=torch.float32)
            written = torch.empty_like(gradient)
        del rows, norms
        parameter.add_(written, alpha=-LR)


def build_torchao(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_torchao_optimizer`: blocks of 256 for 4-bit states too, although
    torchao's own default is 128. For fp8: axolotl, core/builders/base.py.

    Raises:
        ConfigError: `optim_args` has a block size as text. It is passed to torchao as text and fails there.
    """
    block_size = request.arg("block_size", 256, int)
    kinds: dict[str, Kind] = {"adamw_torch_4bit": "4bit", "adamw_torch_8bit": "8bit", "ao_adamw_fp8": "fp8"}
    if "block_size" in request.args and request.name != "ao_adamw_fp8":
        raise ConfigError(
            "transformers passes block_size to torchao as text, and torchao fails on it",
            key="optim_args.block_size",
            value=request.args["block_size"],
            remedy="leave it out: blocks are of 256 elements",
        )
    request.note(
        "ruled",
        "states as torchao 0.17.0 makes them; its compiled update is assumed to be fused, so up to one "
        "fp32 copy of the largest tensor can come on top",
    )
    return request.traced(LowBitAdamW(request.groups, kinds[request.name], block_size))


_ADAM_PARTS = ("embed_tokens", "lm_head", "wte", "word_embeddings")


def build_sinkgd(request: Request) -> TracedOptimizer:
    """axolotl, utils/optimizers/sinkgd.py, `SinkGDOptimizerFactory` and `_sinkgd_param_groups`."""
    groups: ParamGroups = [{"params": [], "use_sinkgd": True}, {"params": [], "use_sinkgd": False}]
    for name, parameter in request.trainable:
        adam = (
            parameter.ndim < 2
            or name.endswith("modules_to_save.default.weight")
            or any(part in name for part in _ADAM_PARTS)
        )
        groups[adam]["params"].append(parameter)
    fused = request.arg("sinkgd_fused_kernel", False, to_bool)
    optimizer = SinkGD(
        [group for group in groups if group["params"]],
        iterations=max(request.arg("sinkhorn_iters", 5, int), 1),
        spectral=request.arg("sinkgd_spectral_norm", False, to_bool),
        sphere=request.arg("sinkgd_md_sphere", False, to_bool),
        fused_from=request.arg("sinkgd_fused_min_numel", 1 << 25, int) if fused else -1,
    )
    request.note(
        "ruled",
        "steps as axolotl's utils/optimizers/sinkgd.py; its compiled update is assumed to hold two "
        "copies of one gradient at a time",
    )
    return request.traced(optimizer)
