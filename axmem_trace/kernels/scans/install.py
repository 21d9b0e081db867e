"""`install_scans`: replaces the functions of scans in transformers' modeling files."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from axmem_trace.kernels.card import num_sms
from axmem_trace.kernels.modeling_files import loaded_modeling_files
from axmem_trace.kernels.scans import causal_conv, gated_delta, kda, short_conv
from axmem_trace.kernels.scans.mamba_inner import mamba_inner_fn
from axmem_trace.kernels.scans.packing import PackedSamples, watch_packed_samples
from axmem_trace.kernels.scans.rwkv import rwkv_linear_attention
from axmem_trace.kernels.scans.selective_scan import selective_scan_fn
from axmem_trace.kernels.scans.ssd import mamba_chunk_scan_combined
from axmem_trace.kernels.scans.ssd_split import mamba_split_conv1d_scan_combined
from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note
from axmem_trace.tracing.context import KernelContext

Kernel = Callable[..., Any]

_MAMBA: dict[str, Kernel] = {
    "mamba_inner_fn": mamba_inner_fn,
    "mamba_selective_scan": selective_scan_fn,
    "mamba2_chunk_scan": mamba_chunk_scan_combined,
    "mamba2_split_conv1d_scan_combined": mamba_split_conv1d_scan_combined,
}
"""Name of the function in a modeling file -> the function of mamba-ssm 2.3.2."""
_FLA: dict[str, Kernel] = {
    "torch_chunk_gated_delta_rule": gated_delta.chunk_gated_delta_rule,
    "chunk_kimi_delta_attention": kda.chunk_kda,
}
"""Name of the function in a modeling file -> the function of fla-core 0.5.2."""
_CONV = "causal_conv1d_fn"
_MAMBA_NOTE = Note(
    kind="ruled",
    key="mamba-ssm",
    text="the figures for state-space layers are those of mamba-ssm 2.3.2 and causal-conv1d 1.7.0. axolotl does not "
    "install these packages (`pip install mamba-ssm causal-conv1d`); without them transformers runs its own scan in "
    "torch, which needs several times as much memory",
)
_FLA_NOTE = Note(
    kind="ruled",
    key="flash-linear-attention",
    text="the figures for linear attention are those of fla-core 0.5.2, which axolotl installs (without it transformers "
    "runs its own chunks in torch, which need several times as much memory)",
)
_CONV_NOTE = Note(
    kind="traced",
    key="causal-conv1d",
    text="the short convolution is transformers' own, in torch: axolotl does not install causal-conv1d, which would "
    "keep one tensor less in this layer",
)
_PACKED_CONV_NOTE = Note(
    kind="ruled",
    key="causal-conv1d",
    text="packed samples use the short convolution of fla-core 0.5.2, as in axolotl's patch",
)
_QUANTISED_NOTE = Note(
    kind="warning",
    key="mamba-ssm.quantised",
    text="mamba-ssm's fused training kernel multiplies by the projections' weights itself, and cannot read quantised "
    "weights. The figures are those of a separate convolution and scan, which axolotl 0.19 uses only for Nemotron-H. With "
    "mamba-ssm installed, this run would fail in its first layer; exclude the state-space layers' projections from "
    "quantisation",
)
_RWKV_NOTE = Note(
    kind="ruled", key="rwkv", text="attention is the `wkv` kernel, which transformers 5 loads from the Hub on a GPU"
)

_XLSTM_NOTE = Note(
    kind="assumed",
    key="xlstm",
    text="the layers are transformers' own torch code, which runs if the package xlstm is not installed; with it, "
    "its kernels keep other tensors",
)


def install_scans(site: Site) -> None:
    """Make loaded modeling files use the functions of mamba-ssm and flash-linear-attention, until the site is closed.

    Source: transformers 5 `integrations/hub_kernels.py`, `use_kernel_func_from_hub_with_fallback`. If the package can be
    imported, the modeling file calls the package's function with the keyword arguments that it knows. Otherwise it runs a
    loop in torch, whose memory is very different.
    """
    samples = watch_packed_samples(site)
    for module in loaded_modeling_files():
        for name, replacement in _replacements(site.context, module, samples):
            site.replace_attribute(module, name, replacement)
    if site.model_type == "xlstm":
        site.note(_XLSTM_NOTE)


def _replacements(context: KernelContext, module: ModuleType, samples: PackedSamples) -> Iterator[tuple[str, Kernel]]:
    """Name -> the kernel that replaces it in one modeling file."""
    found = vars(module)
    if "rwkv_linear_attention" in found:
        yield "rwkv_linear_attention", _adapted(context, rwkv_linear_attention, _RWKV_NOTE, samples)
    is_mamba = any(name in found for name in _MAMBA)
    is_guarded = module.__name__.endswith(".modeling_nemotron_h")
    for kernels, note in ((_MAMBA, _MAMBA_NOTE), (_FLA, _FLA_NOTE)):
        for name in kernels.keys() & found.keys():
            yield name, _adapted(context, kernels[name], note, samples, refused=None if is_guarded else _QUANTISED_NOTE)
    if _CONV in found and is_mamba:
        yield _CONV, _adapted(context, causal_conv.causal_conv1d_fn, _MAMBA_NOTE, samples)
    elif _CONV in found:
        yield _CONV, _short_conv(context, found[_CONV], samples)


def _adapted(
    context: KernelContext, kernel: Kernel, note: Note, samples: PackedSamples, *, refused: Note | None = None
) -> Kernel:
    """The kernel, called with the keyword arguments that it knows. When it runs, it adds a note to the report.

    Args:
        refused: the note for a kernel that returns None.
    """
    known = frozenset(inspect.signature(kernel).parameters)
    fixed: dict[str, Any] = {"num_sms": num_sms(context), "context": context}
    fixed = {key: value for key, value in fixed.items() if key in known}

    @functools.wraps(kernel)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = {"seq_idx": samples.index, "cu_seqlens": samples.bounds}
        kwargs |= {key: value for key, value in given.items() if value is not None}
        out = kernel(*args, **{key: value for key, value in kwargs.items() if key in known}, **fixed)
        said = refused if out is None else note
        if said is not None:
            context.note(said)
        return out

    return run


def _short_conv(context: KernelContext, original: Kernel, samples: PackedSamples) -> Kernel:
    """transformers' own convolution, or fla's where axolotl has patched the layer for packed samples."""

    @functools.wraps(original)
    def run(
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if samples.bounds is None:
            context.note(_CONV_NOTE)
            return original(hidden_states, weight, bias, activation=activation, **kwargs)
        context.note(_PACKED_CONV_NOTE)
        tokens = hidden_states.transpose(1, 2)
        out = short_conv.causal_conv1d(tokens, weight, bias, activation, samples.bounds, context=context)
        return out.transpose(1, 2)

    return run
