"""LoRA on experts that `quantize_moe_experts` packs: peft's wrapper with axolotl's changes.

Source: axolotl 0.21 `monkeypatch/moe_quant.py` (`patch_peft_target_parameters_matching`; 0.19 has its first half).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from axmem_trace.tracing.patching import removed_item, replaced

_PROXIES = ("_LoraParameterProxy", "_LoraFactorsProxy")
"""peft's parametrisations that add the adapter to a weight (`tuners/lora/layer.py`); the second came with 0.21."""


@contextmanager
def cache_of_unpacked_weights(model: nn.Module) -> Iterator[None]:
    """Torch's cache of parametrised weights is off and empty afterwards: the hooks of packed experts switch it on, and it
    may stay on where a forward stops in the middle."""
    if not any(hasattr(module, "parametrizations") for module in model.modules()):
        yield
        return
    with replaced(parametrize, "_cache_enabled", 0):
        try:
            yield
        finally:
            parametrize._cache.clear()


@contextmanager
def adapters_of_quantised_experts(model: nn.Module) -> Iterator[None]:
    """Inside this context, code that reads a packed expert weight gets it with its adapter, as with axolotl's two changes.

    - Two wrappers may be around one module. The outer one opens torch's cache of parametrised weights. The inner one reads
      the weight while it registers its adapter, so the cache would keep the weight without it. axolotl removes that entry.
    - peft 0.21 leaves its `_LoraFactorsProxy` on a weight that has another parametrisation, here that of bitsandbytes. Then
      each forward would add the adapter again, and the next micro-batch would fail. axolotl removes the proxy.
    """
    from peft.tuners.lora import layer as lora

    if not any(isinstance(module, lora.ParamWrapper) and _is_packed(module) for module in model.modules()):
        yield
        return
    activate = lora.ParamWrapper._activate_lora
    proxies = tuple(getattr(lora, name) for name in _PROXIES if hasattr(lora, name))

    @contextmanager
    def activate_and_forget(self: Any, active_adapters: list[str]) -> Iterator[None]:
        with activate(self, active_adapters):
            key = (id(self.get_base_layer()), self.parameter_name)
            with removed_item(lambda: parametrize._cache, key):
                yield

    def remove(self: Any) -> None:
        base, name = self.get_base_layer(), self.parameter_name
        chain: Any = base.parametrizations[name]
        if len(chain) == 1:
            parametrize.remove_parametrizations(base, name, leave_parametrized=False)
            return
        last = max(index for index, each in enumerate(chain) if isinstance(each, proxies))
        del chain[last]

    with ExitStack() as stack:
        stack.enter_context(replaced(lora.ParamWrapper, "_activate_lora", activate_and_forget))
        if len(proxies) == len(_PROXIES):
            stack.enter_context(replaced(lora.ParamWrapper, "_remove_parametrizations", remove))
        yield


def _is_packed(wrapper: Any) -> bool:
    return wrapper.parameter_name in getattr(wrapper.get_base_layer(), "parametrizations", ())
