"""Muon and Dion: optimizers with orthogonalised momentum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.training.optimizers.groups import decay_parameter_names
from axmem_trace.training.optimizers.rebuilt import DECAY, EPS, LR, RebuiltOptimizer
from axmem_trace.training.optimizers.request import ParamGroups, Request
from axmem_trace.training.optimizers.traced import TracedOptimizer

_COMPILED = "matrix products allocate their results; elementwise work is assumed to be fused in place (torch.compile)"


def newton_schulz(gradient: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The orthogonalised (R, C) matrix in bf16 (axolotl-contribs-mit 0.0.6, muon/muon.py,
    `zeropower_via_newtonschulz5`): in each step, two products with the size of the smaller side squared, and one with
    the size of the matrix."""
    matrix = gradient.bfloat16()
    if gradient.size(0) > gradient.size(1):
        matrix = matrix.T
    matrix = matrix / (matrix.norm() + EPS)
    for _ in range(steps):
        gram = matrix @ matrix.T
        square = gram @ gram
        square.add_(gram)
        product = square @ matrix
        matrix = product.add_(matrix)
    return matrix.T if gradient.size(0) > gradient.size(1) else matrix


class Muon(RebuiltOptimizer):
    """axolotl-contribs-mit 0.0.6, muon/muon.py, `Muon.step`: one momentum for each matrix. Embeddings and heads use
    AdamW, tensor by tensor. All matrices are updated first, then the others."""

    def _update(self) -> None:
        members = list(self._with_gradient())
        for group, parameter, state in members:
            gradient = parameter.grad
            if not group["use_muon"] or gradient is None:
                continue
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            state["momentum_buffer"].mul_(DECAY).add_(gradient)
            gradient = gradient.add(state["momentum_buffer"], alpha=DECAY)
            update = newton_schulz(gradient)
            parameter.data.mul_(DECAY)
            parameter.data.add_(update, alpha=-LR)
        for group, parameter, state in members:  # the `update` of the last matrix stays alive, as in the original
            gradient = parameter.grad
            if group["use_muon"] or gradient is None:
                continue
            if not state:
                state["moment1"] = torch.zeros_like(gradient)
                state["moment2"] = torch.zeros_like(gradient)
            state["moment1"].lerp_(gradient, 1 - DECAY)
            state["moment2"].lerp_(gradient.square(), 1 - DECAY)
            gradient = state["moment1"] / (EPS + state["moment2"].sqrt())
            parameter.data.mul_(DECAY)
            parameter.data.add_(gradient, alpha=-LR)


def orthogonalise(matrix: torch.Tensor, oversample: float = 1.25) -> torch.Tensor:
    """A (1, R, C) batch with orthonormal columns (axolotl-contribs-mit 0.0.6, dion/dion.py, `orthogonalize`): QR for
    square and wide matrices, randomised Cholesky QR for tall matrices, in fp32."""
    if matrix.size(-2) <= matrix.size(-1):
        basis, _ = torch.linalg.qr(matrix.to(torch.float32))
        return basis.to(matrix.dtype).contiguous()
    rows = math.ceil(oversample * matrix.size(-1) / 128.0) * 128
    sketch = torch.empty(
        (*matrix.shape[:-2], rows, matrix.size(-2)), device=matrix.device, dtype=matrix.dtype
    ).normal_()
    image = sketch @ matrix
    _, triangle = torch.linalg.qr(image.to(torch.float32), mode="r")
    basis = torch.linalg.solve_triangular(triangle, matrix.to(torch.float32), upper=True, left=False)
    gram = basis.mT @ basis
    triangle, _ = torch.linalg.cholesky_ex(gram, upper=True)
    basis = torch.linalg.solve_triangular(triangle, basis, upper=True, left=False)
    return basis.to(matrix.dtype).contiguous()


class Dion(RebuiltOptimizer):
    """axolotl-contribs-mit 0.0.6, dion/dion.py, on one GPU (`dion_update_ddp` with batches of one): momentum and a
    basis of rank r for each matrix. Other parameters use AdamW in compiled multi-tensor code
    (`adamw_update_foreach`)."""

    def _update(self) -> None:
        members = list(self._with_gradient())
        for group, parameter, state in members:
            if group["algorithm"] == "dion":
                self._step_matrix(group, parameter, state)
        for group, parameter, state in members:
            if group["algorithm"] == "adamw" and not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["variance"] = torch.zeros_like(parameter)

    @staticmethod
    def _step_matrix(group: dict[str, Any], parameter: nn.Parameter, state: dict[str, Any]) -> None:
        rows, columns = parameter.shape
        transposed = rows < columns
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            multiple = group["rank_multiple_of"]
            rank = min(multiple * math.ceil(group["rank_fraction"] * min(rows, columns) / multiple), rows, columns)
            state["Q"] = torch.randn(
                (rows if transposed else columns, rank), device=parameter.device, dtype=parameter.dtype
            )
        assert parameter.grad is not None
        state["momentum"].add_(parameter.grad)
        momentum = torch.stack([state["momentum"].mT if transposed else state["momentum"]])
        basis = torch.stack([state["Q"]])
        product = orthogonalise(momentum @ basis)
        right = momentum.mT @ product
        # fix_all_zero_or_nan: two fused copies; foreach_baddbmm_: a product with the matrix's size, added in place
        product, right = torch.empty_like(product), torch.empty_like(right)
        Dion._add_product(state["momentum"], product, right, transposed)
        normalised = torch.empty_like(right)
        Dion._add_product(parameter.data, product, normalised, transposed)
        state["Q"].copy_(normalised[0])

    @staticmethod
    def _add_product(matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor, transposed: bool) -> None:
        product = right @ left.mT if transposed else left @ right.mT
        matrix.add_(product[0], alpha=-LR)


_EMBEDDINGS = ("embed_tokens", "lm_head")


def is_embedding(name: str) -> bool:
    """Whether axolotl's Muon and Dion use AdamW for a parameter of this name."""
    return name.endswith("modules_to_save.default.weight") or any(part in name for part in _EMBEDDINGS)


def build_muon(request: Request) -> TracedOptimizer:
    """axolotl-contribs-mit 0.0.6, muon/muon.py, `MuonOptimizerFactory`: vectors (norms, biases) are left out and are
    not trained.

    Raises:
        ConfigError: a trainable parameter has three dimensions; Muon fails on it.
    """
    groups: ParamGroups = [{"params": [], "use_muon": True}, {"params": [], "use_muon": False}]
    for name, parameter in request.trainable:
        if parameter.ndim < 2:
            continue
        if not is_embedding(name):
            _refuse_dimensions(request, name, parameter)
        groups[is_embedding(name)]["params"].append(parameter)
    if any(parameter.ndim < 2 for _, parameter in request.trainable):
        request.note("warning", "Muon leaves vectors (norms, biases) untrained: they get gradients but no update")
    request.note("ruled", f"steps as axolotl-contribs-mit 0.0.6, muon/muon.py; {_COMPILED}")
    return request.traced(Muon([group for group in groups if group["params"]]))


def build_dion(request: Request) -> TracedOptimizer:
    """axolotl-contribs-mit 0.0.6, dion/axolotl_.py, `DionOptimizerFactory`.

    axolotl does not pass `dion_rank_fraction` and `dion_rank_multiple_of` to Dion (core/builders/base.py,
    `_configure_optimizer`), so the rank is full unless `optim_args` has `rank_fraction`.
    """
    fraction = request.arg("rank_fraction", 1.0, float)
    multiple = request.arg("rank_multiple_of", 1, int)
    if not 0 < fraction <= 1 or multiple <= 0:
        raise ConfigError(
            "Dion's rank_fraction is above 0 and up to 1, rank_multiple_of above 0",
            key="optim_args",
            value=dict(request.args),
        )
    for key in ("dion_rank_fraction", "dion_rank_multiple_of"):
        if request.extra.get(key) not in (None, 1, 1.0):
            request.note("ignored", f"axolotl doesn't pass {key} to Dion; {key[5:]} in optim_args is passed", key=key)
    decayed = decay_parameter_names(request.module)
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in request.trainable:
        dion = parameter.ndim >= 2 and not is_embedding(name)
        if dion:
            _refuse_dimensions(request, name, parameter)
        groups.setdefault(("dion" if dion else "adamw", is_embedding(name), name in decayed), []).append(parameter)
    request.note("ruled", f"steps as axolotl-contribs-mit 0.0.6, dion/dion.py, dion_update_ddp; {_COMPILED}")
    return request.traced(
        Dion(
            [
                {"params": members, "algorithm": algorithm, "rank_fraction": fraction, "rank_multiple_of": multiple}
                for (algorithm, _, _), members in groups.items()
            ]
        )
    )


def _refuse_dimensions(request: Request, name: str, parameter: torch.Tensor) -> None:
    if parameter.ndim > 2:
        raise ConfigError(
            f"{request.name} fails on parameters of {parameter.ndim} dimensions, as {name} is",
            key="optimizer",
            value=request.name,
            remedy="freeze them or choose another optimizer",
        )
