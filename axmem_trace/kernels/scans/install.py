"""`install_scans`: puts the kernels' functions where transformers looks for them."""

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
"""By the name that a modeling file gives to the function: what mamba-ssm 2.3.2 puts there."""
_FLA: dict[str, Kernel] = {
    "torch_chunk_gated_delta_rule": gated_delta.chunk_gated_delta_rule,
    "chunk_kimi_delta_attention": kda.chunk_kda,
}
"""The same for fla-core 0.5.2."""
_CONV = "causal_conv1d_fn"
_MAMBA_NOTE = Note(
    kind="ruled",
    key="mamba-ssm",
    text="state-space layers as mamba-ssm 2.3.2 and causal-conv1d 1.7.0 keep memory. axolotl does not install them by "
    "itself (`pip install mamba-ssm causal-conv1d`); without them transformers runs its own scan in torch, which "
    "takes several times as much",
)
_FLA_NOTE = Note(
    kind="ruled",
    key="flash-linear-attention",
    text="linear attention as fla-core 0.5.2, which axolotl installs, keeps memory (without it transformers runs its "
    "own chunks in torch, which take several times as much)",
)
_CONV_NOTE = Note(
    kind="traced",
    key="causal-conv1d",
    text="the short convolution is transformers' own, in torch: axolotl does not install causal-conv1d, with which "
    "this layer would keep one tensor less",
)
_PACKED_CONV_NOTE = Note(
    kind="ruled",
    key="causal-conv1d",
    text="packed samples go through the short convolution of fla-core 0.5.2, as axolotl's patch has it",
)
_QUANTISED_NOTE = Note(
    kind="warning",
    key="mamba-ssm.quantised",
    text="mamba-ssm's fused training kernel multiplies by the projections' weights itself, and cannot read quantised ones. "
    "The layer is traced as separate convolution and scan, as axolotl 0.19 does it for Nemotron-H only: "
    "with mamba-ssm installed this run would stop at its first layer; keep the state-space layers' projections out of "
    "the quantisation",
)
_RWKV_NOTE = Note(
    kind="ruled", key="rwkv", text="attention as the `wkv` kernel that transformers 5 loads from the Hub on a GPU"
)

_XLSTM_NOTE = Note(
    kind="assumed",
    key="xlstm",
    text="the layers are transformers' own torch code, which runs where the package xlstm is not installed; with it, "
    "its kernels keep other tensors",
)


def install_scans(site: Site) -> None:
    """While open, every loaded modeling file finds mamba-ssm and flash-linear-attention installed.

    Source: transformers 5 `integrations/hub_kernels.py`, `use_kernel_func_from_hub_with_fallback`: the function in the
    modeling file is the package's if the package can be imported, with the keyword arguments that it knows; else it
    is a loop in torch, whose memory is very different.
    """
    samples = watch_packed_samples(site)
    for module in loaded_modeling_files():
        for name, replacement in _replacements(site.context, module, samples):
            site.replace_attribute(module, name, replacement)
    if site.model_type == "xlstm":
        site.note(_XLSTM_NOTE)


def _replacements(context: KernelContext, module: ModuleType, samples: PackedSamples) -> Iterator[tuple[str, Kernel]]:
    """Functions of one modeling file, by name."""
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
    """The kernel, called with the keyword arguments that it knows, and named in the report once it runs.

    Args:
        refused: the note for a kernel that returns nothing.
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
