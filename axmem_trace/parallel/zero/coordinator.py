"""ZeRO-3: which parameters are gathered at which time, from a trace of the modules of one step.

Source: deepspeed 0.19.8 `runtime/zero/partitioned_param_coordinator.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from axmem_trace.parallel.zero.parts import AVAILABLE, NOT_AVAILABLE, Part, Parts

INVALID, RECORD, COMPLETE = "invalid", "record", "complete"
MAX_ONGOING_FETCHES = 2
"""`__max_ongoing_fetch_events`: before a third fetch, the host waits."""


class Coordinator:
    """Fetches and releases the parameters of each module as it runs.

    Args:
        prefetch, max_live, max_reuse: numbers of elements: `stage3_prefetch_bucket_size`, `stage3_max_live_parameters`,
            `stage3_max_reuse_distance`.
        is_leaf: returns whether a module is fetched together with all modules inside it.
        externals: by module, the parameters that it uses but does not own.
        keeps_recomputed: whether frozen parameters that a recomputation fetches belong to the module whose backward is
            running.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        prefetch: int,
        max_live: int,
        max_reuse: int,
        stream: Any,
        is_leaf: Callable[[nn.Module], bool],
        externals: dict[int, dict[int, nn.Parameter]],
        device: torch.device,
        keeps_recomputed: bool,
    ) -> None:
        self._device, self._keeps_recomputed = device, keeps_recomputed
        self._parts, self._prefetch, self._max_live, self._max_reuse = parts, prefetch, max_live, max_reuse
        self._stream, self._is_leaf, self._externals = stream, is_leaf, externals
        self._accelerator: Any = torch.meta  # type: ignore[attr-defined]
        self._mode = INVALID
        self._order: list[nn.Module] = []
        self._uses: list[tuple[Part, int]] = []
        """Each use of a parameter in the trace, with the step at which it happens."""
        self._queue: deque[tuple[Part, int]] = deque()
        self._fetched_for: dict[Part, int] = {}
        self._step = 0
        self._num_available = 0
        self._in_flight: dict[Part, Callable[[], None]] = {}
        self._events: deque[Any] = deque()
        self._active: dict[int, nn.Module] = {}
        """Modules whose backward is running."""
        self._recomputed: dict[int, list[Part]] = {}
        """By module, the frozen parameters that its recomputation fetches."""

    def parts_of(self, module: nn.Module) -> list[Part]:
        """The parameters that are fetched for a module."""
        own: Iterable[nn.Parameter] = module.parameters(recurse=self._is_leaf(module))
        found = {id(each): each for each in (*own, *self._externals.get(id(module), {}).values())}
        return [part for part in map(self._parts.of, found.values()) if part is not None]

    # -- the trace ----------------------------------------------------------------------------------------------------

    def start_forward(self) -> None:
        """`reset_step`: a forward of the whole model begins."""
        for part, wait in list(self._in_flight.items()):
            wait()
            self._release(part)
        self._in_flight.clear()
        if self._mode != COMPLETE:
            self._compare(len(self._order))
        if self._mode == RECORD:
            self._uses = [
                (part, step)
                for step, module in enumerate(self._order)
                for part in sorted(self.parts_of(module), key=lambda part: part.number)
            ]
            self._compare(len(self._uses))
            self._compare(len(self._uses))
            self._mode = COMPLETE
        elif self._mode == INVALID:
            self._mode = RECORD
        self._queue = deque(self._uses)
        self._fetched_for = {}
        self._step = self._num_available = 0

    def _compare(self, count: int) -> None:
        """`assert_ints_same_as_other_ranks`: rank 0 first sends how many numbers there are, and then the numbers."""
        for length in (1, count):
            dist.broadcast(torch.tensor([0] * length, dtype=torch.int64, device=self._device), 0)

    def _follow(self, module: nn.Module) -> None:
        """Compares the module with the trace, which is valid as long as modules run in its order."""
        if self._mode == COMPLETE and (len(self._order) <= self._step or self._order[self._step] is not module):
            self._mode = INVALID
            self._order, self._uses, self._queue, self._fetched_for = [], [], deque(), {}
            for part, wait in list(self._in_flight.items()):
                wait()
                self._release(part)
            self._in_flight.clear()
        if self._mode == RECORD:
            self._order.append(module)

    # -- fetching -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fetch(self, module: nn.Module, *, forward: bool) -> None:
        """Gathers the module's parameters. If the trace is complete, it also starts to gather the next ones."""
        self._follow(module)
        if not forward:
            self._active[id(module)] = module
        wanted = self.parts_of(module)
        self._gather(part for part in wanted if part.status == NOT_AVAILABLE)
        recomputes = self._keeps_recomputed and forward and torch._C._current_graph_task_id() != -1
        for part in wanted:
            part.users.add(id(module))
            if recomputes and self._active and not part.parameter.requires_grad:
                owner = next(reversed(self._active))
                self._recomputed.setdefault(owner, []).append(part)
                part.users.add(owner)
            self._wait(part)
        self._accelerator.current_stream().wait_stream(self._stream)
        if self._mode == COMPLETE:
            self._fetch_ahead(wanted)
        self._step += 1

    def _gather(self, parts: Iterable[Part]) -> None:
        missing = list(parts)
        if not missing:
            return
        self._num_available += sum(part.numel for part in missing)
        with self._accelerator.stream(self._stream):
            wait = self._parts.gather_later(missing)
        for part in missing:
            self._in_flight[part] = wait

    def _wait(self, part: Part) -> None:
        wait = self._in_flight.pop(part, None)
        if wait is None:
            return
        with self._accelerator.stream(self._stream):
            if len(self._events) > MAX_ONGOING_FETCHES:
                self._events.popleft().synchronize()
            wait()
            self._events.append(self._accelerator.current_stream().record_event())

    def _fetch_ahead(self, wanted: list[Part]) -> None:
        new = {part for part in wanted if self._fetched_for.get(part, -1) < self._step}
        taken: set[Part] = set()
        while self._queue and len(taken) < len(new):
            part, step = self._queue.popleft()
            self._fetched_for[part] = step
            taken.add(part)
        most = min(self._max_live - self._num_available, self._prefetch)
        ahead: list[Part] = []
        elements = 0
        while self._queue and elements < most:
            part, step = self._queue.popleft()
            self._fetched_for[part] = max(self._fetched_for.get(part, -1), step)
            if part.status == NOT_AVAILABLE and part not in ahead:
                ahead.append(part)
                elements += part.numel
        self._gather(ahead)

    # -- releasing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def release(self, module: nn.Module, *, forward: bool) -> None:
        """The module has finished: its parameters are released if no module needs them soon."""
        parts = self.parts_of(module)
        dropped = set(self._released(module, parts) if self._mode == COMPLETE else parts)
        if not forward:
            recomputed = self._recomputed.pop(id(module), [])
            dropped.update(part for part in recomputed if not part.persists)
            parts = list(dict.fromkeys((*parts, *recomputed)))
            self._active.pop(id(module), None)
        for part in parts:
            part.users.discard(id(module))
            if part in dropped and not part.is_external:
                self._release(part)

    def _released(self, module: nn.Module, parts: list[Part]) -> Iterator[Part]:
        """`__params_to_release`."""
        soon: set[Part] = set()
        elements = 0
        for later in self._order[self._step :]:
            if elements >= self._max_reuse:
                break
            for part in self.parts_of(later):
                soon.add(part)
                elements += part.numel
        for part in parts:
            if not part.persists and self._fetched_for.get(part, -1) <= self._step and part not in soon:
                yield part

    def _release(self, part: Part) -> None:
        if part.status == AVAILABLE and not part.users:
            self._parts.release(part)
            self._num_available -= part.numel

    def release_leftovers(self) -> None:
        """After backward, releases the parameters of modules whose end of backward was not reported."""
        while self._active:
            _, module = self._active.popitem()
            for part in (*self.parts_of(module), *self._recomputed.pop(id(module), [])):
                part.users.discard(id(module))
                if not part.persists and not part.is_external:
                    self._release(part)

    def release_all(self) -> None:
        """Before the step, releases all parameters, the persistent ones too."""
        for part in self._parts.by_id.values():
            wait = self._in_flight.pop(part, None)
            if wait is not None:
                wait()
            part.users.clear()
            self._release(part)
