"""Autocast on meta compared with CUDA's own.

The reference: torch's fake tensors have CUDA's dispatch keys on any machine, so the dispatcher runs the compiled
autocast kernels on them. Meta must run the same operators in the same dtypes. This comparison uses no gradients and no
subscripts, because a CPU build has no device guard for CUDA. Other tests check by the kept tensors that autograd
records the casts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_recording import gpu_recording
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from axmem_trace.tracing import autocast
from axmem_trace.tracing.cuda_mode import CudaMode

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
HEADER = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
CALLS: dict[str, Callable[..., Any]] = {
    "linear": lambda h, f, i: F.linear(h, f),
    "linear of fp32": lambda h, f, i: F.linear(f, f, f.select(0, 0)),
    "matmul": lambda h, f, i: h @ f,
    "matmul, other side": lambda h, f, i: f.__rmatmul__(h),
    "bmm": lambda h, f, i: torch.bmm(h.unsqueeze(0), f.unsqueeze(0)),
    "addmm": lambda h, f, i: torch.addmm(f, h, h),
    "einsum": lambda h, f, i: torch.einsum("ij,kj->ik", h, f),
    "mixed add": lambda h, f, i: h + f,
    "cat": lambda h, f, i: torch.cat([h, h]),
    "conv1d": lambda h, f, i: F.conv1d(h.unsqueeze(0), f.unsqueeze(-1)),
    "softmax": lambda h, f, i: F.softmax(h, dim=-1),
    "softmax method": lambda h, f, i: h.softmax(-1),
    "softmax with dtype": lambda h, f, i: F.softmax(h, dim=-1, dtype=BF16),
    "log_softmax": lambda h, f, i: torch.log_softmax(h, -1),
    "cross_entropy": lambda h, f, i: F.cross_entropy(h, i),
    "cross_entropy of fp32": lambda h, f, i: F.cross_entropy(f, i),
    "nll_loss": lambda h, f, i: F.nll_loss(h, i),
    "logsumexp": lambda h, f, i: h.logsumexp(-1),
    "sum": lambda h, f, i: h.sum(),
    "sum of a dimension": lambda h, f, i: h.sum(-1, keepdim=True),
    "sum of a named input": lambda h, f, i: torch.sum(input=h, dim=-1),
    "softmax of a named input": lambda h, f, i: torch.softmax(input=h, dim=-1),
    "product into a tensor": lambda h, f, i: torch.matmul(f, f, out=torch.empty_like(f)),
    "sum with dtype": lambda h, f, i: h.sum(-1, dtype=BF16),
    "mean": lambda h, f, i: h.mean(-1),
    "cumsum": lambda h, f, i: h.cumsum(-1),
    "prod": lambda h, f, i: torch.prod(h, -1),
    "pow": lambda h, f, i: h.pow(2),
    "pow operator": lambda h, f, i: h**2,
    "pow of scalar": lambda h, f, i: 2**h,
    "square": lambda h, f, i: torch.square(h),
    "square method": lambda h, f, i: h.square(),
    "softmin": lambda h, f, i: F.softmin(h, dim=-1),
    "special softmax": lambda h, f, i: torch.special.softmax(h, -1),
    "special log1p": lambda h, f, i: torch.special.log1p(h),
    "rsqrt": lambda h, f, i: torch.rsqrt(h),
    "sqrt": lambda h, f, i: h.sqrt(),
    "exp": lambda h, f, i: h.exp(),
    "exp_": lambda h, f, i: h.clone().exp_(),
    "log": lambda h, f, i: torch.log(h),
    "one over": lambda h, f, i: 1.0 / h,
    "silu": lambda h, f, i: F.silu(h),
    "gelu": lambda h, f, i: F.gelu(h),
    "softplus": lambda h, f, i: F.softplus(h),
    "layer_norm": lambda h, f, i: F.layer_norm(h, (8,), f.select(0, 0), f.select(0, 1)),
    "group_norm": lambda h, f, i: F.group_norm(h.unsqueeze(0), 2),
    "norm": lambda h, f, i: h.norm(dim=-1),
    "vector_norm": lambda h, f, i: torch.linalg.vector_norm(h, dim=-1),
    "normalize": lambda h, f, i: F.normalize(h, dim=-1),
    "cosine_similarity": lambda h, f, i: F.cosine_similarity(h, f, dim=-1),
    "mse_loss": lambda h, f, i: F.mse_loss(h, h),
    "kl_div": lambda h, f, i: F.kl_div(h, h, reduction="batchmean"),
    "bce": lambda h, f, i: F.binary_cross_entropy_with_logits(h, h),
    "interpolate": lambda h, f, i: F.interpolate(h.unsqueeze(0).unsqueeze(0), scale_factor=2, mode="bilinear"),
    "addcmul": lambda h, f, i: torch.addcmul(h, h, f),
    "scatter_add": lambda h, f, i: torch.scatter_add(f, 0, i.unsqueeze(0), h),
    "double": lambda h, f, i: torch.exp(f.double()),
    "nested, off": lambda h, f, i: _without_autocast(lambda: h @ h),
    "dropout": lambda h, f, i: F.dropout(h, 0.1),
}  # fmt: skip


def _without_autocast(run: Callable[[], Any]) -> Any:
    with torch.autocast("cuda", enabled=False):
        return run()


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("name", CALLS)
def test_meta_runs_the_same_operators_as_cuda(name: str, dtype: torch.dtype) -> None:
    run = CALLS[name]
    if dtype is FP16 and name in ("softmax with dtype", "sum with dtype"):
        pytest.skip("names bf16")
    assert log_on_meta(run, dtype) == log_on_fake_cuda(run, dtype)


@pytest.mark.parametrize(
    ("macro", "names"),
    [
        ("LOWER_PRECISION_FP", autocast.LOWER_PRECISION),
        ("FP32", autocast.FP32),
        ("FP32_SET_OPT_DTYPE", [name for name in autocast.FP32_SET_OPT_DTYPE if name != "norm"]),
        ("PROMOTE", autocast.PROMOTE),
    ],
)
def test_lists_are_those_of_the_installed_torch(macro: str, names: list[str]) -> None:
    # `norm` has its own macro: its overloads without a dtype get one
    body = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)*.*\n)", HEADER.read_text())
    assert body is not None
    assert set(re.findall(r"_\((\w+)", body[1])) == set(names)


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        fresh = any(each.alias_info is None and "Tensor" in str(each.type) for each in func._schema.returns)
        if fresh and str(func) not in ("aten._conj.default", "aten.resolve_conj.default"):
            self.seen.append(
                (str(func), [each.dtype for each in tree_leaves(result) if isinstance(each, torch.Tensor)])
            )
        return result


def _arguments(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    half = torch.empty(8, 8, device=device, dtype=dtype)
    return half, torch.empty(8, 8, device=device), torch.empty(8, device=device, dtype=torch.int64)


def log_on_fake_cuda(run: Callable[..., Any], dtype: torch.dtype) -> Any:
    enabled, before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.no_grad(), FakeTensorMode():
        arguments = _arguments("cuda", dtype)
        torch.set_autocast_enabled("cuda", True)  # `torch.autocast` would refuse without a GPU
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with _Log() as log:
                run(*arguments)
        finally:
            torch.set_autocast_enabled("cuda", enabled)
            torch.set_autocast_dtype("cuda", before)
            torch.clear_autocast_cache()
    return log.seen


def log_on_meta(run: Callable[..., Any], dtype: torch.dtype) -> Any:
    recording = gpu_recording()
    arguments = _arguments("meta", dtype)
    with torch.no_grad(), _Log() as log, CudaMode(recording).opened(), torch.autocast("cuda", dtype=dtype):
        run(*arguments)
    return log.seen


# -- the cache of cast weights ----------------------------------------------------------------------------------------


def count_casts(run: Callable[..., Any], *, trains: bool = True, cache: bool = True, backward: bool = False) -> int:
    """The number of bf16 copies of an 8 by 8 fp32 weight that are made in forward, or in backward."""
    recording = gpu_recording()
    recorder = recording.recorder
    weight = torch.empty(8, 8, device="meta", requires_grad=trains)
    x = torch.empty(4, 8, device="meta", dtype=BF16, requires_grad=True)
    with recording, CudaMode(recording).opened():
        recorder.mark("forward", 1)
        with torch.autocast("cuda", dtype=BF16, cache_enabled=cache):
            out = run(x, weight)
        recorder.mark("backward", 1)
        if backward:
            gradient = torch.ones_like(out)
            _engine_run_backward((out,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        allocations = recorder.make_ledger().allocations
    phase = "backward" if backward else "forward"
    return sum(
        each.op == "aten._to_copy.default" and each.nbytes == 128 and each.phase == phase for each in allocations
    )


def _twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(x, weight), weight)


def test_a_weight_that_trains_is_cast_once() -> None:
    assert count_casts(_twice) == 1


def test_a_tensor_that_is_no_trained_leaf_is_cast_each_time() -> None:
    assert count_casts(_twice, trains=False) == 2
    assert count_casts(lambda x, weight: _twice(x, weight * 1)) == 2
    assert count_casts(lambda x, weight: F.linear(F.linear(x, weight.t()), weight.t())) == 2
    assert count_casts(_twice, cache=False) == 2


def test_only_the_outermost_exit_clears_the_cache() -> None:
    def nested(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=BF16):
            x = F.linear(x, weight)
        return F.linear(x, weight)

    assert count_casts(nested) == 1


def test_the_cache_fills_without_gradients_too() -> None:
    def frozen_pass(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return _twice(x, weight)

    assert count_casts(frozen_pass) == 1


def test_a_weight_cast_without_gradients_trains_through_the_cached_copy() -> None:
    def with_and_without(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            F.linear(x, weight)
        return F.linear(x.detach(), weight)  # only the weight requires a gradient

    # one cast; backward makes the weight's gradient (4 x 8 by 4 x 8, 128 bytes in bf16) and casts it back to fp32
    assert count_casts(with_and_without) == 1
    assert count_casts(with_and_without, backward=True) == 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_casts_into_a_cache_of_its_own(use_reentrant: bool) -> None:
    def two_regions(x: torch.Tensor, weight: torch.Tensor) -> Any:
        for _ in range(2):
            x = checkpoint(_twice, x, weight, use_reentrant=use_reentrant)
        return x

    # forward: one cast for both regions; backward: autocast is entered and left once per region
    assert count_casts(two_regions) == 1
    assert count_casts(two_regions, backward=True) == 2


def test_custom_functions_get_their_inputs_cast_and_no_autocast_inside() -> None:
    dtypes: list[torch.dtype] = []

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=FP32)
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            dtypes.extend([x.dtype, (x @ x.t()).dtype])
            return x * 2

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            dtypes.append((grads[0].t() @ grads[0]).dtype)
            return grads[0]

    count_casts(lambda x, weight: Product.apply(x), backward=True)
    assert dtypes == [FP32, FP32, FP32]


def test_arguments_are_cast_from_the_last_to_the_first():
    """PyTorch's binaries do the same. The allocator's history of its CUDA build shows it: the weight's copy comes
    before the input's, and in backward the gradient of the input comes before that of the weight."""
    order = []

    class Noting(autocast.Autocast):
        def cast(self, tensor, dtype):
            order.append(tuple(tensor.shape))
            return super().cast(tensor, dtype)

    inputs, weight = torch.empty(4, 8, device="meta"), torch.empty(16, 8, device="meta")
    bias = torch.empty(16, device="meta")
    torch.set_autocast_enabled("cuda", True)
    try:
        (first, second), kwargs = Noting().apply(F.linear, (inputs, weight), {"bias": bias})
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert order == [(16,), (16, 8), (4, 8)]
    assert (first.shape, second.shape, kwargs["bias"].shape) == ((4, 8), (16, 8), (16,))
