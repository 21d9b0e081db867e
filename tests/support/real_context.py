"""ringmaster's own attention in real processes on the CPU, which exchange by gloo, and ours on meta: both around a plain
attention function in place of flash-attn's kernels, which only GPUs have."""

from __future__ import annotations

import inspect
import pickle
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from axmem_trace.ledger import Ledger
from axmem_trace.recipe.parallel import Context, Mesh, Parallel
from axmem_trace.recipe.recipe import Recipe
from support.kernel_recording import PLAIN, recording_on, run_backward
from support.real_ranks import run_in_processes

ROWS, HEAD_DIM = 2, 8


@dataclass(frozen=True, slots=True)
class Case:
    """One attention call of each rank: `tokens` of each row are its own; `samples` of a packed row, 1: not packed."""

    context: Context
    heads: int
    kv_heads: int
    tokens: int
    samples: int = 1
    balance: Literal["none", "head_tail"] = "none"

    def recipe(self) -> Recipe:
        """With whole rows."""
        size = self.context.size
        batch = replace(
            PLAIN.batch,
            rows=ROWS,
            row_tokens=self.tokens * size,
            packed=self.samples > 1,
            samples_per_row=self.samples,
        )
        parallel = Parallel(engine="ddp", num_gpus=size, mesh=Mesh(context=size), context=self.context)
        return replace(PLAIN, batch=batch, parallel=parallel)


class PlainKernel(torch.autograd.Function):
    """It keeps query, key, value, output and logsumexp, as a flash kernel does. Heads (B, S, H, D)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out, lse = allocate_plain(query)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def allocate_plain(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and logsumexp of heads (B, S, H, D)."""
    rows, tokens, heads, _ = query.shape
    return torch.empty_like(query), torch.empty((rows, heads, tokens), dtype=torch.float32, device=query.device)


def plain_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any
) -> Any:
    """transformers' form of the kernel: heads (B, H, S, D) to (B, S, H, D)."""
    return PlainKernel.apply(*(each.transpose(1, 2) for each in (query, key, value))), None


def plain_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """flash-attn's form for samples: heads (tokens, H, D)."""
    out: torch.Tensor = PlainKernel.apply(*(each.unsqueeze(0) for each in (query, key, value)))
    return out.squeeze(0)


def record_context_for_real(cases: Sequence[Case], num_ranks: int) -> list[list[Ledger]]:
    """One call of each case, forward and backward, in `num_ranks` processes; the records by case, then by rank."""
    return run_in_processes(_run_rank, cases, num_ranks)


def _run_rank(cases: Sequence[Case], rank: int, num_ranks: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    ledgers = []
    for case in cases:
        with _ringmaster(case) as attention:
            ledgers.append(_record(case, "cpu", attention))
    (Path(folder) / f"rank{rank}").write_bytes(pickle.dumps(ledgers))
    dist.barrier()
    dist.destroy_process_group()


@contextmanager
def _ringmaster(case: Case) -> Iterator[Any]:
    """Its attention function for the case, on the path that it takes with NCCL on GPUs."""
    import torch.distributed as dist
    from ringmaster import mesh, runtime
    from ringmaster.config import LoadBalance, RingmasterConfig, RotateMethod
    from ringmaster.strategies import ring, ulysses, usp

    context = case.context
    config = RingmasterConfig(size=context.size, ulysses_size=context.heads, ring_size=context.ring)
    config.load_balance = LoadBalance(case.balance)
    rotation = RotateMethod.ALLTOALL if context.rotation == "steps" else RotateMethod.ALLGATHER
    with ExitStack() as stack:
        stack.enter_context(patch("ringmaster.mesh.require_torch"))
        state = mesh.build_runtime(config, device_type="cpu")
        state.varlen = _varlen(case)
        runtime.set_runtime(state)
        stack.callback(runtime.set_runtime, None)
        stack.enter_context(patch.object(dist, "get_backend", lambda group=None: "nccl"))
        for name in ("all_to_all_single", "all_gather", "reduce_scatter"):
            stack.enter_context(patch.object(dist, name, _with_copies(getattr(dist, name))))
        stack.enter_context(patch.object(dist.P2POp, "__init__", _with_copies(dist.P2POp.__init__)))
        stack.enter_context(patch.object(ulysses, "_resolve_inner", lambda name: plain_attention))
        stack.enter_context(patch.object(ulysses, "_flash_varlen_fn", lambda name: plain_varlen))
        block = {"plain": _plain_block}
        stack.enter_context(patch.dict("ringmaster.ring.kernels.PROVIDERS", block))
        for name in ("loop", "p2p_attn", "zigzag"):
            stack.enter_context(
                patch.dict(sys.modules, {f"ringmaster.ring.{name}": _as_on_gpu(f"ringmaster.ring.{name}")})
            )
        sys.modules["ringmaster.ring"].ring_attention = sys.modules["ringmaster.ring.loop"].ring_attention  # type: ignore[attr-defined]
        if context.ring == 1:
            yield ulysses.make_ulysses_attention("flash_attention_2")
        elif context.heads == 1:
            yield ring.make_ring_attention("plain", "flash_attention_2", rotation)
        else:
            yield usp.make_usp_attention("plain", "flash_attention_2", rotation)


def _with_copies(exchange: Any) -> Any:
    """`exchange` with copies that no record has: a thread of gloo holds what it exchanges for an unknown time."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return exchange(*tree_map_only(torch.Tensor, torch.clone, args), **kwargs)

    return call


def _as_on_gpu(name: str) -> types.ModuleType:
    """The module, with its tests for a GPU answered by yes, and plain functions in place of flash-attn's."""
    original = __import__(name, fromlist=["x"])
    module = types.ModuleType(name)
    source = inspect.getsource(original).replace("q.is_cuda", "True")
    exec(compile(source, original.__file__ or name, "exec"), module.__dict__)
    if hasattr(module, "_flash_ops"):
        module._flash_ops = lambda *_: (_plain_forward, lambda *_: None)  # type: ignore[attr-defined]
    return module


def _plain_block(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
    return PlainKernel.apply(query, key, value), None


def _plain_forward(query: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    return (*allocate_plain(query), None, None)


def _varlen(case: Case) -> tuple[torch.Tensor, int] | None:
    """As ringmaster derives it from the positions of whole rows."""
    from ringmaster.shard import varlen_meta

    whole = case.tokens * case.context.size
    length = -(-whole // case.samples)
    return varlen_meta((torch.arange(whole) % length).expand(ROWS, -1), whole)


def record_context_on_meta(case: Case, *, rank: int) -> Ledger:
    """The same by our functions."""
    from axmem_trace.kernels.context import gathered, install, steps
    from axmem_trace.kernels.context.heads import make_ulysses
    from support.kernel_recording import site_of

    recipe = case.recipe()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.distributed, "get_rank", lambda: rank))
        stack.enter_context(patch.object(gathered, "run_flash2", lambda context, heads, **_: PlainKernel.apply(*heads)))
        stack.enter_context(patch.object(steps, "allocate_block", lambda context, heads: allocate_plain(heads[0])))
        stack.enter_context(patch.object(steps, "run_block_backward", lambda context, heads: None))
        stack.enter_context(patch.object(gathered, "_flat", lambda rows, ranks: None))  # NCCL's own, and not gloo's
        if case.context.ring == 1:
            attention = make_ulysses(recipe, "flash_attention_2", plain_attention, plain_varlen)
        else:
            site = stack.enter_context(site_of(recording_on("meta"), recipe=recipe))
            attention = install.make_ring(site, plain_varlen)
        return _record(case, "meta", attention)


def _record(case: Case, device: str, attention: Any) -> Ledger:
    recording = recording_on(device)
    module = torch.nn.Module()
    module.config = types.SimpleNamespace(_attn_implementation="plain")  # type: ignore[assignment]
    heads = [
        torch.empty((ROWS, case.tokens, count, HEAD_DIM), dtype=torch.bfloat16, device=device, requires_grad=True)
        for count in (case.heads, case.kv_heads, case.kv_heads)
    ]
    with recording, recording.recorder.watch(module):
        recording.recorder.mark("forward", 1)
        out, _ = attention(module, *(each.transpose(1, 2) for each in heads), None, scaling=1.0)
        recording.recorder.mark("backward", 1)
        run_backward(out)
        del out
    return recording.recorder.make_ledger()
