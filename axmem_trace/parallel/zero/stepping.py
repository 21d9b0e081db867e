"""The optimizer with ZeRO: its groups contain this rank's fp32 partitions instead of the model's parameters.

Source: deepspeed 0.19.8 `runtime/engine.py` `_configure_optimizer`, `_configure_basic_optimizer`,
`get_optimizer_configuration`; accelerate 1.15 `utils/deepspeed.py` `map_pytorch_optim_to_deepspeed`; transformers 5.20
`integrations/deepspeed.py` `deepspeed_optim_sched`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.ledger import Device
from axmem_trace.recipe.parallel import Zero
from axmem_trace.tracing.recorder import Recorder


class Optimizer(Protocol):
    """The methods of a traced optimizer that are used here (`training/optimizers/traced.py`)."""

    name: str
    optimizers: Sequence[torch.optim.Optimizer]
    hooked: Sequence[torch.optim.Optimizer]

    def step(self) -> None:
        """Updates the parameters of all groups."""

    def state_tensors(self) -> Iterator[tuple[nn.Parameter | None, torch.Tensor, Any]]:
        """The tensors that it keeps between steps, and their device."""


class Reduced(Protocol):
    """The gradients of a stage. They are handled differently in the last micro-batch of a step."""

    is_boundary: bool


@contextmanager
def without_boundary(gradients: Reduced) -> Iterator[None]:
    """Open during every micro-batch but the last."""
    gradients.is_boundary = False
    try:
        yield
    finally:
        gradients.is_boundary = True


class Stepping:
    """Runs the optimizer on one group after the other.

    Args:
        traced: an optimizer that runs on meta. DeepSpeed's own optimizer replaces it if the settings require it.
    """

    def __init__(self, traced: Optimizer, zero: Zero, recorder: Recorder, model: nn.Module) -> None:
        self._traced, self._zero, self._recorder = traced, zero, recorder
        if not zero.optimizer:
            _refuse_special(traced)
        if zero.optimizer:
            parameters = [each for each in model.parameters() if each.requires_grad]
            traced.optimizers = [_own_optimizer(zero.optimizer, [{"params": parameters}])]
        elif zero.offload_optimizer and zero.forces_cpu_optimizer:
            (client,) = traced.optimizers
            traced.optimizers = [_cpu_optimizer(client)]
        (self._optimizer,) = traced.optimizers
        self._optimizer.param_groups[:] = [group for group in self._optimizer.param_groups if group["params"]]
        self._groups: list[dict[str, Any]] = list(self._optimizer.param_groups)

    def trained(self) -> list[list[nn.Parameter]]:
        """The trainable parameters of each group."""
        return [[each for each in group["params"] if each.requires_grad] for group in self._groups]

    def replace(self, number: int, master: nn.Parameter) -> None:
        """From now on, the optimizer updates this partition as the group."""
        self._groups[number]["params"] = [master]
        if isinstance(self._optimizer, torch.optim.Adagrad):  # the constructor makes its sums
            self._optimizer.state.clear()
            for group in self._groups[: number + 1]:
                for each in group["params"]:
                    total = torch.full_like(each, 0.0, memory_format=torch.preserve_format)
                    self._optimizer.state[each] = {"step": torch.tensor(0.0), "sum": total}

    def step_on(self, number: int, master: nn.Parameter) -> None:
        """Runs the optimizer on one group with only this tensor."""
        self._groups[number]["params"] = [master]
        self.step(number)
        self._groups[number]["params"] = []

    def clear(self) -> None:
        """Removes the parameters from the groups until the next `step_on`."""
        for group in self._groups:
            group["params"] = []

    def step(self, number: int) -> None:
        """Runs the optimizer on one group, and registers the states that it has made."""
        self._optimizer.param_groups = [self._groups[number]]
        self._traced.step()
        self._optimizer.param_groups = self._groups
        for _, tensor, device in self._traced.state_tensors():
            place: Device = "cpu" if self._zero.offload_optimizer else device
            self._recorder.register(tensor, role="optimizer", device=place)


def _refuse_special(traced: Optimizer) -> None:
    """Refuses optimizers that need matrices or layers: a flat partition has neither.

    Raises:
        ConfigError: the optimizer needs them.
    """
    groups = [group for optimizer in traced.optimizers for group in optimizer.param_groups]
    if len(traced.optimizers) == 1 and not traced.hooked and not any("rank" in group for group in groups):
        return
    raise ConfigError(
        "DeepSpeed makes one flat tensor of the weights: with it, the memory of an optimizer that works on matrices or "
        "on layers can't be estimated",
        key="optimizer",
        value=traced.name,
        remedy="use `optimizer: adamw_torch_fused`, or FSDP instead of DeepSpeed",
    )


def _own_optimizer(name: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed's JSON file names. DeepSpeed's Adam (FusedAdam, CPUAdam) has two states and no
    temporary tensors, like PyTorch's fused AdamW. Its Lion has one state. Others are PyTorch's."""
    kind = name.lower()
    if kind in ("adam", "adamw"):
        return torch.optim.AdamW(groups, fused=True)
    if kind == "lion":
        return torch.optim.SGD(groups, lr=1e-4, momentum=0.9, fused=True)
    if kind == "adagrad":
        return torch.optim.Adagrad(groups)
    chosen: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    return chosen(groups)  # type: ignore[call-arg]


def _cpu_optimizer(client: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`map_pytorch_optim_to_deepspeed`: DeepSpeedCPUAdam replaces every optimizer except 32-bit Adagrad and Lion."""
    groups: list[dict[str, Any]] = [{"params": list(group["params"])} for group in client.param_groups]
    name = type(client).__name__
    is_narrow = getattr(client, "optim_bits", getattr(getattr(client, "args", None), "optim_bits", 32)) != 32
    if "Adagrad" in name and not is_narrow:
        return torch.optim.Adagrad(groups)
    if "Lion" in name and not is_narrow:
        return _own_optimizer("lion", groups)
    return _own_optimizer("adamw", groups)
