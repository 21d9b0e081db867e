"""Loading on the GPU: weights are copied one by one and packed. Then follow axolotl's casts and the adapter.

Source: transformers 5.16 `modeling_utils.py` (`caching_allocator_warmup`, `get_total_byte_count`) and
`core_model_loading.py` (`convert_and_load_state_dict_in_model`, `MergeModulelist`, `Concatenate`); bitsandbytes 0.50
`nn/modules.py` (`Params4bit._quantize`, `Int8Params._quantize`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from axmem_trace.kernels.install import gpu_rules
from axmem_trace.ledger import Device, Role
from axmem_trace.models.build import WatchLoading, build_model
from axmem_trace.models.built import BuiltModel
from axmem_trace.models.device_map import is_on_host
from axmem_trace.models.layer_folding import Folding, NoFolding
from axmem_trace.models.quantisation import iterate_bnb_states
from axmem_trace.models.reference import build_reference
from axmem_trace.models.reward_models import build_reward_models, copy_policy, reward_name
from axmem_trace.models.warm_up import warm_up
from axmem_trace.notes import Note
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.units import format_bytes

PACKED_CHUNK = 1 << 26
"""The number of weights that axolotl packs at a time, if it stages them on the host (0.21 `utils/nf4.py`)."""


def load_models(recipe: Recipe, recording: RecordingMode, folding: Folding | None = None) -> BuiltModel:
    """Loads the model to train and, if the run has one, its reference, one after the other.

    Args:
        folding: leaves repeated layers out of the model to train.

    Raises:
        ConfigError: as `build_model`.
    """
    built = build_model(recipe, watch=LoadRecorder(recording, recipe, folding=folding).loaded, folding=folding)

    def watch(own: Recipe) -> WatchLoading:
        return LoadRecorder(recording, own, role="reference").loaded

    reference = build_reference(recipe, watch=watch)
    rewards, network = build_reward_models(recipe), copy_policy(recipe, built.module)
    for number, model in enumerate(rewards):
        _register_frozen(recording, reward_name(number), model)
    _register_frozen(recording, "feature_network", network)
    return replace(built, reference=reference, reward_models=rewards, feature_network=network)


def _register_frozen(recording: RecordingMode, name: str, model: nn.Module | None) -> None:
    """Registers a frozen model on the GPU, one tensor after the other."""
    if model is None:
        return
    recording.recorder.mark("load", 0)
    for module_name, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                recording.recorder.register(tensor, role="reference", module=f"{name}.{module_name}".rstrip("."))


class LoadRecorder:
    """Reports to a recorder the tensors that `from_pretrained` copies to the card, and records later changes to the
    model."""

    def __init__(
        self, recording: RecordingMode, recipe: Recipe, role: Role = "weight", folding: Folding | None = None
    ) -> None:
        self._recording, self.recorder = recording, recording.recorder
        self.recipe, self.role, self._folding = recipe, role, folding or NoFolding()
        self._represents = self._folding.represents

    @contextmanager
    def loaded(self, model: nn.Module) -> Iterator[None]:
        """`model` is the result of `from_pretrained`. While this is open, changes to it are recorded."""
        self._recording.add_rules(gpu_rules())  # again: the model may have imported bitsandbytes, which has operators
        if self._folding.repetition is not None:
            self.recorder.watch_layers(self._folding.repetition)
        self.recorder.mark("load", 0)
        if self.recipe.parallel.fsdp.stages_packed:
            self._pack_in_chunks(model)
        elif _packs_for_host(self.recipe):
            self._pack_for_host(model)
        if self.recipe.placement.on_host_first or _loads_on_host(self.recipe):  # the whole model comes to the GPU later
            yield
            return
        self._note_mapped(model)
        with self._recording:
            self._warm_up(model)
            self._place_weights(model)
            yield
            if self.role == "reference":  # replaced by casts; the trained model's roles are set when it is complete
                self._register_all(model)

    def _pack_for_host(self, model: nn.Module) -> None:
        """Packs each weight on the GPU and moves it back to the host; its scales stay on the GPU (transformers 4.48
        `modeling_utils.py`, `_load_state_dict_into_meta_model`: `value.data.to("cpu")`, with the same
        `quant_state`)."""
        modules = dict(model.named_modules())
        for full_name in sorted(name for name, _ in model.named_parameters()):
            name, _, own_name = full_name.rpartition(".")
            parameter = modules[name]._parameters[own_name]
            if parameter is None or getattr(parameter, "quant_state", None) is None:
                continue
            with self._while_arriving(parameter, False):
                self.recorder.workspace(parameter.nbytes, "transformers.from_pretrained")
                for state in iterate_bnb_states(name, modules[name]):
                    self._register(name, state.tensor)

    def _pack_in_chunks(self, model: nn.Module) -> None:
        """Rank 0 packs one weight after the other on its GPU, and stores them on the host (axolotl 0.21 `utils/nf4.py`
        `quantize_bnb_4bit`). On the GPU are a chunk in the load dtype, its packed bytes and its scales, and the fp32
        scales of the whole weight."""
        if torch.distributed.get_rank():
            return
        itemsize = getattr(torch, self.recipe.precision.load_dtype).itemsize
        for name, _, parameter in _own_parameters(model):
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                elements = _num_weights(parameter)
                chunk, scales = min(elements, PACKED_CHUNK), 4 * -(-elements // state.blocksize)
                blocks = [scales, chunk * itemsize, chunk // 2, 4 * -(-chunk // state.blocksize)]
                with self.recorder.in_module(name):
                    self.recorder.workspace(blocks, "axolotl.quantize_bnb_4bit")

    def _note_mapped(self, model: nn.Module) -> None:
        """Adds a note on mapped files: safetensors maps the checkpoint's files, and each tensor is copied from there to
        the GPU (`core_model_loading.py` `_materialize_copy`)."""
        itemsize = getattr(torch, self.recipe.precision.load_dtype).itemsize
        nbytes = sum(
            _num_weights(parameter) * itemsize * self._represents(name) for name, _, parameter in _own_parameters(model)
        )
        text = (
            f"loading maps the checkpoint's files: up to {format_bytes(nbytes)} of page cache (in "
            f"{self.recipe.precision.load_dtype}), which the system frees as it needs; no other copy of the weights "
            "is made in host memory"
        )
        self.recorder.notes.append(Note(kind="ruled", key="host.loading", text=text, bytes=nbytes))

    def _warm_up(self, model: nn.Module) -> None:
        nbytes = sum(
            self._counted_bytes(module, parameter) * self._represents(name)
            for name, module, parameter in _own_parameters(model)
            if not is_on_host(parameter)
        )
        nbytes += sum(buffer.nbytes * self._represents(name) for name, buffer in model.named_buffers())
        warm_up(self.recorder, self.recipe, nbytes)

    def _counted_bytes(self, module: nn.Module, parameter: nn.Parameter) -> int:
        """The size that transformers' quantizers calculate (`param_element_size`): half a byte for each weight of a
        4-bit linear layer."""
        is_packed = getattr(parameter, "quant_state", None) is not None
        return _num_weights(parameter) // 2 if is_packed else parameter.nbytes

    def _place_weights(self, model: nn.Module) -> None:
        if self.recipe.older.loading == "before_4_50" and self.recipe.quantisation.method != "none":
            self._place_weights_of_old(model)
            return
        merged = merged_names(model)
        for name, module in model.named_modules():
            for own_name in module._parameters:
                self._place(name, module, own_name, merged)
            self._place_rest(name, module)

    def _place_weights_of_old(self, model: nn.Module) -> None:
        """Allocates the weights in the order of a safetensors file, which is sorted by name; the buffers follow after
        all weights.

        transformers 4.48 `modeling_utils.py` `_load_state_dict_into_meta_model`, then accelerate's `dispatch_model`.
        Without a quantizer the whole model was moved to the card at once.
        """
        modules = dict(model.named_modules())
        for full_name in sorted(name for name, _ in model.named_parameters()):
            name, _, own_name = full_name.rpartition(".")
            self._place(name, modules[name], own_name, lambda name: False)
        for name, module in modules.items():
            self._place_rest(name, module)

    def _place(self, name: str, module: nn.Module, own_name: str, merged: Callable[[str], bool]) -> None:
        """Allocates one parameter, with the state that bitsandbytes keeps for it."""
        parameter = module._parameters[own_name]
        if parameter is None:
            return
        with self._while_arriving(parameter, merged(f"{name}.{own_name}" if name else own_name)):
            self._register(name, parameter)
            for state in iterate_bnb_states(name, module) if own_name == "weight" else ():
                self._register(name, state.tensor)

    def _place_rest(self, name: str, module: nn.Module) -> None:
        """Allocates the buffers, and the states that bitsandbytes keeps for experts that are not linear layers."""
        for buffer in module._buffers.values():
            if buffer is not None:
                self._register(name, buffer)
        if "weight" not in module._parameters:  # a parametrisation of fused experts
            for state in iterate_bnb_states(name, module):
                self._register(name, state.tensor)

    def _register_all(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._register(name, tensor)

    def _register(self, module: str, tensor: torch.Tensor) -> None:
        device: Device = "cpu" if is_on_host(tensor) else "gpu"
        self.recorder.register(tensor, role=self.role, module=module, device=device)

    @contextmanager
    def _while_arriving(self, parameter: nn.Parameter, is_merged: bool) -> Iterator[None]:
        """Temporary memory while a weight is made from the checkpoint's tensors."""
        with self.recorder.blocks(self._source_blocks(parameter, is_merged), "transformers.from_pretrained"):
            yield

    def _source_blocks(self, parameter: nn.Parameter, is_merged: bool) -> list[int]:
        """The bytes of each temporary block.

        A 4-bit weight: the weight in the load dtype; with double quantisation also the fp32 `absmax` and its copy minus
        the mean. An 8-bit weight: the weight in the load dtype, and an fp16 copy if that is another dtype. Fused
        experts: parts with the same total size (`MergeModulelist` and `Concatenate` drop each part after its copy).
        """
        if self.recipe.quantisation.method in ("bnb_4bit", "bnb_8bit"):
            itemsize = getattr(torch, self.recipe.precision.load_dtype).itemsize
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                elements = int(torch.Size(state.shape).numel())
                absmax = -(-elements // state.blocksize) * 4
                return [elements * itemsize, *([absmax, absmax] if state.nested else [])]
            if parameter.dtype == torch.int8:
                is_fp16 = self.recipe.precision.load_dtype == "float16"
                return [parameter.numel() * itemsize, *([] if is_fp16 else [parameter.numel() * 2])]
        return [parameter.nbytes] if is_merged and not is_on_host(parameter) else []


def _loads_on_host(recipe: Recipe) -> bool:
    """True if the weights stay on the host. With FSDP and DeepSpeed there is no device map, so the weights are read
    into host memory. QLoRA's weights are copied to each GPU (axolotl `loaders/model.py` `_set_device_map_config`) if
    they are not staged, and bitsandbytes packs 8-bit weights on the GPU."""
    sharded = recipe.parallel.engine in ("fsdp1", "fsdp2", "tensor", "zero1", "zero2", "zero3")
    stays = recipe.quantisation.method not in ("bnb_4bit", "bnb_8bit") or recipe.parallel.fsdp.stages_packed
    return (sharded and stays) or _packs_for_host(recipe)


def _packs_for_host(recipe: Recipe) -> bool:
    """True if 4-bit weights are packed on the GPU and then kept on the host. This is so in FSDP1 runs whose weights
    transformers itself loads."""
    parallel = recipe.parallel
    return parallel.engine == "fsdp1" and recipe.quantisation.method == "bnb_4bit" and parallel.fsdp.loads_on_host


def _num_weights(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Each parameter once, with the first module that has it and that module's name."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, module, parameter


def merged_names(model: Any) -> Any:
    """A function that returns whether a parameter is made from several tensors of the checkpoint."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    if not hasattr(model, "config"):
        return lambda name: False
    patterns = [
        re.compile(re.escape(target.lstrip("^").rstrip("$")).replace(r"\*", "[0-9]+"))
        for conversion in get_model_conversion_mapping(model)
        if isinstance(conversion, WeightConverter)
        for target in conversion.target_patterns
    ]
    return lambda name: any(pattern.search(name) for pattern in patterns)
