"""CUDA's autocast, applied to tensors on meta: which functions cast what, and the cache of cast weights.

`torch.autocast("cuda")` acts in the dispatcher, and only on tensors of CUDA devices. For meta tensors the same casts
are made here, one level higher: on the Python functions, above autograd. So autograd records the casts as in a GPU run.
The lists are those of torch 2.11 to 2.13, torch/include/ATen/autocast_mode.h (`AT_FORALL_*`); a test compares them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

LOWER_PRECISION = (
    "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution prelu "
    "addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot "
    "_thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell "
    "_scaled_dot_product_flash_attention scaled_dot_product_attention"
).split()
FP32 = (
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus layer_norm "
    "native_layer_norm rms_norm group_norm frobenius_norm nuclear_norm cosine_similarity poisson_nll_loss "
    "cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss "
    "margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss "
    "binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d _upsample_nearest_exact1d "
    "upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d "
    "upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa"
).split()
FP32_SET_OPT_DTYPE = ("prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm").split()
PROMOTE = "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split()

_Call = tuple[tuple[Any, ...], dict[str, Any]]
_OTHER_NAMES = {
    "matmul": ("__matmul__", "__rmatmul__"), "pow": ("__pow__", "__rpow__", "square"),
    "linalg_vector_norm": ("vector_norm",), "linalg_matrix_norm": ("matrix_norm",), "linalg_vecdot": ("vecdot",),
    "linalg_multi_dot": ("multi_dot",),
    "reciprocal": ("__rdiv__", "__rtruediv__"), "upsample_bilinear2d": ("interpolate",),
    "grid_sampler": ("grid_sample",),
}  # fmt: skip
"""Other Python functions that call the operator of this name: `1 / x` multiplies by a reciprocal, `square` is a power
(aten/src/ATen/native/UnaryOps.cpp)."""


class Autocast:
    """Casts a call's arguments as CUDA's autocast would, while `torch.is_autocast_enabled("cuda")`."""

    def __init__(self) -> None:
        self._weights: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    def apply(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """The arguments, cast by the function's policy; the same objects if it has no policy. Overloads that write into
        `out` have no policy."""
        policy = _POLICIES.get(function)
        if policy is None or not torch.is_autocast_enabled("cuda") or kwargs.get("out") is not None:
            return args, kwargs
        return policy(self, args, kwargs)

    def clear(self) -> None:
        """Drops the cast weights. torch does this at the end of the outermost autocast
        (`torch.clear_autocast_cache`)."""
        self._weights.clear()

    def cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Casts one tensor. Trainable fp32 leaves are cast once and kept in a cache (autocast_mode.cpp,
        `cached_cast`)."""
        if not _is_eligible(tensor) or tensor.dtype == dtype:
            return tensor
        cacheable = (
            dtype == torch.get_autocast_dtype("cuda")
            and tensor.dtype == torch.float32
            and tensor.requires_grad
            and tensor.is_leaf
            and not tensor._is_view()
            and torch.is_autocast_cache_enabled()
            and not torch.is_inference_mode_enabled()
        )
        if not cacheable:
            return tensor.to(dtype)
        found = self._weights.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        with torch.enable_grad():  # a cast made without gradients is used again by the next pass with gradients
            cast = tensor.to(dtype)
        self._weights[id(tensor)] = (weakref.ref(tensor), cast)
        return cast

    def _cast_all(self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> _Call:
        """Casts from the last argument to the first, as PyTorch's binaries do: GCC evaluates the arguments of a call
        from right to left (autocast_mode.h, `WrapFunction_`). For a linear layer, that is the weight and then its
        input. The autograd engine starts with the node that was recorded last. So backward casts the input's gradient
        back first, then the weight's."""
        values = [*args, *kwargs.values()]
        for place in reversed(range(len(values))):
            values[place] = tree_map_only(torch.Tensor, lambda tensor: self.cast(tensor, dtype), values[place])
        return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))


def _is_eligible(tensor: torch.Tensor) -> bool:
    """autocast_mode.h, `is_eligible`."""
    return tensor.is_meta and tensor.dtype.is_floating_point and tensor.dtype is not torch.float64


def _to_lower_precision(autocast: Autocast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    return autocast._cast_all(args, kwargs, torch.get_autocast_dtype("cuda"))


def _to_fp32(autocast: Autocast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    return autocast._cast_all(args, kwargs, torch.float32)


def _set_dtype_fp32(autocast: Autocast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """Adds `dtype=torch.float32` unless the call has a dtype; the kernel itself converts the input."""
    named = kwargs.get("dtype") is not None or any(isinstance(argument, torch.dtype) for argument in args)
    tensor = args[0] if args else kwargs.get("input")
    if named or not isinstance(tensor, torch.Tensor) or not _is_eligible(tensor):
        return args, kwargs
    return args, {**kwargs, "dtype": torch.float32}


def _promote(autocast: Autocast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """Casts to the widest dtype among the arguments (autocast_mode.h, `promote_type`)."""
    dtypes: set[torch.dtype] = set()
    tree_map_only(torch.Tensor, lambda tensor: dtypes.add(tensor.dtype) if _is_eligible(tensor) else None, args)
    if len(dtypes) < 2:
        return args, kwargs
    return autocast._cast_all(args, kwargs, torch.float32)


def _homes(name: str) -> list[Callable[..., Any]]:
    """Every Python function that calls the operator of this name."""
    found: list[Callable[..., Any]] = []
    for alias in (name, *_OTHER_NAMES.get(name, ())):
        for home in (torch, torch.Tensor, F, torch._C._nn, torch.linalg, torch.special):
            function = getattr(home, alias, None)
            if callable(function) and function not in found:
                found.append(function)
    return found


_POLICIES: dict[Callable[..., Any], Callable[[Autocast, tuple[Any, ...], dict[str, Any]], _Call]] = {
    function: policy
    for names, policy in (
        (PROMOTE, _promote), (FP32_SET_OPT_DTYPE, _set_dtype_fp32), (FP32, _to_fp32),
        (LOWER_PRECISION, _to_lower_precision),
    )
    for name in names
    for function in _homes(name)
}  # fmt: skip
