"""Rules for operators of bitsandbytes that run here as on CUDA, and for the number of outlier columns."""

from __future__ import annotations

import logging
from typing import Any

import torch

from axmem_trace.kernels.bitsandbytes.cuda_backend import (
    WholeOps,
    has_cuda_kernel,
    remember_autocast,
    run_cuda_kernel,
)
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note, RefusalNote
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import DispatchRule, Rules

_AS_ON_CUDA = ("int8_scaled_mm", "int8_linear_matmul", "int8_mm_dequant", "int8_vectorwise_dequant", "gemm_4bit")
"""Operators whose CUDA kernels allocate more than bitsandbytes' meta functions."""
_LOGGERS = ("bitsandbytes.autograd._functions", "bitsandbytes.nn.modules")
"""Loggers that warn at every call of a layer. The real run shows these warnings, so a trace does not need them."""


def make_rules() -> Rules:
    """The rules of all operators that the installed bitsandbytes has."""
    rules: dict[str, DispatchRule] = dict.fromkeys(_AS_ON_CUDA, run_cuda_kernel)
    rules |= {"int8_vectorwise_quant": int8_vectorwise_quant, "int8_mixed_scaled_mm": int8_mixed_scaled_mm}
    table = Rules()
    for name, rule in rules.items():
        if has_cuda_kernel(name):
            op = getattr(torch.ops.bitsandbytes, name).default
            table.dispatch(op, recorded=True)(rule)
            table.function(op)(remember_autocast)
    return table


def install_quiet_bitsandbytes(site: Site) -> None:
    """Hide the warnings of bitsandbytes' layers."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.addFilter(_nothing)
        site.stack.callback(logger.removeFilter, _nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def int8_vectorwise_quant(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Converts rows of fp16 to int8 with one fp32 scale each, and finds an assumed number of outlier columns.

    Source: bitsandbytes 0.50 `backends/cuda/ops.py`, `int8_vectorwise_quant`. If the threshold is positive, the absolute
    values (2 bytes) and their comparison (1 byte) are alive together with the result. The number of columns with a value
    above the threshold depends on real weights and data: `context.int8_outliers`.
    """
    values, threshold = args[0], _threshold(args, kwargs)
    columns = values.shape[-1]
    with WholeOps():
        row_stats = torch.empty(values.numel() // columns, dtype=torch.float32, device=values.device)
        rows = torch.empty(values.shape, dtype=torch.int8, device=values.device)
        if threshold <= 0.0:
            return rows, row_stats, None
        outliers = values.abs() >= threshold
        outliers.any()
        num_found = _num_outliers(context, columns)
        if num_found:
            outliers.any(dim=0)
        found = torch.empty(num_found, dtype=torch.int64, device=values.device)
        if row_stats.numel() > 1:
            rows[:, found] = 0
        del outliers
    return rows, row_stats, found


def int8_mixed_scaled_mm(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The matmul with separate outlier columns, as on CUDA. Input of four dimensions is treated as a matrix.

    Source: bitsandbytes 0.50 `backends/cuda/ops.py`, `_int8_linear_matmul_impl` ("Only two or three dimensional
    matrices are supported"). Such input exists in a model whose attention computes keys for each head with a linear layer
    (GLM-4.7-Flash in transformers 5).
    """
    values, quantised = args[0], args[1]
    if quantised.ndim <= 3:
        return run_cuda_kernel(context, op, args, kwargs)
    text = (
        f"the run fails: bitsandbytes' 8-bit layers refuse input of {quantised.ndim} dimensions, which this model has (the "
        "figures treat the input as a matrix)"
    )
    remedy = "use `adapter: qlora` with `load_in_4bit: true`, which runs"
    context.note(RefusalNote(key="load_in_8bit", text=text, remedy=remedy))
    flat = (values.flatten(0, -2), quantised.flatten(0, -2), *args[2:])
    product, outliers = run_cuda_kernel(context, op, flat, kwargs)
    return product.view(*values.shape[:-1], product.shape[-1]), outliers


def _threshold(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    return float(args[1] if len(args) > 1 else kwargs.get("threshold", 0.0))


def _num_outliers(context: KernelContext, columns: int) -> int:
    stated = context.int8_outliers
    text = (
        f"8-bit layers: {stated} outlier columns (|x| >= the threshold) in each layer's input. The number depends on "
        "weights and data; each keeps 2 bytes per token and layer for backward (--assume int8_outliers=N)"
    )
    context.note(Note(kind="assumed", key="load_in_8bit", text=text))
    return min(stated, columns)
