"""Modules that are in host memory after loading: their parameters are copied to the GPU for each forward.

Source: accelerate 1.13 `hooks.py` `AlignDevicesHook.pre_forward`, `post_forward` (`offload=True`), `utils/modeling.py`
`set_module_tensor_to_device` (a new parameter on the GPU, which requires gradients if the old one did).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from axmem_trace.models.device_map import is_on_host
from axmem_trace.tracing.recorder import Recorder


@contextmanager
def host_modules_copied(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While open, each module with parameters on the host computes with copies of them."""
    hooks: list[Any] = []
    for name, module in model.named_modules():
        waiting = {key: each for key, each in module._parameters.items() if each is not None and is_on_host(each)}
        if waiting:
            hooks += _watch(module, name, waiting, recorder)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(module: nn.Module, name: str, waiting: dict[str, nn.Parameter], recorder: Recorder) -> list[Any]:
    def fetch(module: nn.Module, args: Any) -> None:
        for key, parameter in waiting.items():
            copy = nn.Parameter(parameter.data.clone(), requires_grad=parameter.requires_grad)
            recorder.register(copy, role="weight", module=name)
            module._parameters[key] = copy

    def give_back(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(waiting)

    return [module.register_forward_pre_hook(fetch), module.register_forward_hook(give_back, always_call=True)]
