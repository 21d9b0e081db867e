"""Steps of the libraries' own optimizers, run for real on a CPU.

`python tests/support/optimizer_packages.py [NAME ...]` (with `tests` on the path and the packages installed) writes
their allocations to `optimizer_packages.json`. The tests compare the rebuilt optimizers with that file, and the file
with each package that is installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from axmem_trace.training.optimizers.bnb import own_registries
from support.optimizer_steps import Steps, for_real, make_llama

FILE = Path(__file__).with_name("optimizer_packages.json")
DTYPES = ("bfloat16", "float32")
_LR = {"lr": 1e-4}
Make = Callable[[Any, nn.Module], Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """One optimizer of a package, and the axolotl keys that select it."""

    package: str
    module: str
    make: Make
    keys: dict[str, Any] = field(default_factory=dict)
    second_step: int = 2
    """The number of the second step that is measured."""


def _plain(name: str, *, by_axolotl: bool = False, **kwargs: Any) -> Make:
    """An optimizer over the Trainer's groups, or over axolotl's groups if axolotl builds it."""

    def make(library: Any, module: nn.Module) -> Callable[[], Any]:
        groups = _axolotl_groups(module) if by_axolotl else _decay_groups(module)
        optimizer = getattr(library, name)(groups, **_LR, **kwargs)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer.step  # type: ignore[no-any-return]

    return make


def _decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """transformers `Trainer.create_optimizer`, for a Llama: norms do not decay."""
    named = list(module.named_parameters())
    return [
        {"params": [p for name, p in named if "norm" not in name], "weight_decay": 0.0},
        {"params": [p for name, p in named if "norm" in name], "weight_decay": 0.0},
    ]


def _axolotl_groups(module: nn.Module) -> list[dict[str, Any]]:
    """axolotl core/trainers/mixins/optimizer.py, `create_optimizer_grouped_parameters`: matrices, ends, norms."""
    parts = (("_proj",), ("embed_tokens", "lm_head"), ("norm",))
    named = list(module.named_parameters())
    return [
        {"params": [p for name, p in named if any(part in name for part in each)], "weight_decay": 0.0}
        for each in parts
    ]


def _projected(name: str, **projection: Any) -> Make:
    """Two groups, the second one projected (transformers, `_setup_low_rank_optimizer`)."""

    def make(library: Any, module: nn.Module) -> Callable[[], Any]:
        named = list(module.named_parameters())
        groups = [
            {"params": [p for name, p in named if "_proj" not in name]},
            {"params": [p for name, p in named if "_proj" in name], **projection},
        ]
        kwargs = {"scale_parameter": False, "relative_step": False} if "factor" in name else {}
        return getattr(library, name)(groups, **_LR, **kwargs).step  # type: ignore[no-any-return]

    return make


def _lomo(name: str) -> Make:
    def make(library: Any, module: nn.Module) -> Callable[[], Any]:
        optimizer = getattr(library, name)(module, **_LR)
        update = getattr(optimizer, "grad_func", None) or optimizer.fuse_update()
        return lambda: update(torch.zeros(()))

    return make


def _muon(library: Any, module: nn.Module) -> Callable[[], Any]:
    named = [(name, p) for name, p in module.named_parameters() if p.ndim == 2]
    heads = [p for name, p in named if "embed" in name or "lm_head" in name]
    matrices = [p for name, p in named if "_proj" in name]
    optimizer = library.Muon(**_LR, muon_params=matrices, adamw_params=heads)

    @torch.no_grad()
    def step() -> None:
        optimizer.step()

    return step


def _sinkgd(library: Any, module: nn.Module) -> Callable[[], Any]:
    groups = [
        {"params": [p for name, p in module.named_parameters() if "_proj" in name], "use_sinkgd": True},
        {"params": [p for name, p in module.named_parameters() if "_proj" not in name], "use_sinkgd": False},
    ]
    return library.SinkGD(groups, **_LR).step  # type: ignore[no-any-return]


def _bnb(name: str) -> Make:
    """Embeddings keep fp32 states (transformers, `Trainer.create_optimizer`)."""

    def make(library: Any, module: nn.Module) -> Callable[[], Any]:
        step = _plain(name, optim_bits=8)(library, module)
        override = {"optim_bits": 32}
        library.GlobalOptimManager.get_instance().register_module_override(
            module.model.embed_tokens, "weight", override
        )
        return step

    return make


def _q_galore(library: Any, module: nn.Module) -> Callable[[], Any]:
    importlib.import_module("axolotl.utils.optimizers.qgalore").patch_q_galore_for_modern_bnb()
    projection = {
        "rank": 32,
        "update_proj_gap": 200,
        "scale": 0.25,
        "proj_type": "std",
        "quant": True,
        "queue_size": 5,
        "quant_n_bit": 4,
        "quant_group_size": 64,
        "cos_threshold": 0.4,
        "gamma_proj": 2,
    }
    groups = [
        {"params": [p for name, p in module.named_parameters() if "_proj" in name], **projection},
        {"params": [p for name, p in module.named_parameters() if "_proj" not in name]},
    ]
    return library.QGaLoreAdamW8bit(groups, **_LR).step  # type: ignore[no-any-return]


_GALORE = {"rank": 8, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
_APOLLO = {
    "rank": 8,
    "update_proj_gap": 200,
    "scale": 1.0,
    "proj_type": "std",
    "proj": "random",
    "scale_type": "channel",
}
_LOW_RANK = {"optim_target_modules": [".*_proj"], "optim_args": {"rank": 8}}

CASES: dict[str, Case] = {
    "adamw_torch": Case("torch", "torch.optim", _plain("AdamW", foreach=True)),
    "adamw_torch_fused": Case("torch", "torch.optim", _plain("AdamW", fused=True)),
    "sgd": Case("torch", "torch.optim", _plain("SGD", foreach=True)),
    "sgd momentum": Case("torch", "torch.optim", _plain("SGD", foreach=True, momentum=0.9),
                         {"optim_args": {"momentum": 0.9}}),
    "adagrad": Case("torch", "torch.optim", _plain("Adagrad", foreach=True)),
    "rmsprop": Case("torch", "torch.optim", _plain("RMSprop", foreach=True)),
    "rmsprop centered momentum": Case("torch", "torch.optim",
                                      _plain("RMSprop", foreach=True, momentum=0.9, centered=True),
                                      {"optim_args": {"momentum": 0.9, "centered": True}}),
    "adafactor": Case("transformers", "transformers.optimization",
                      _plain("Adafactor", scale_parameter=False, relative_step=False)),
    "schedule_free_adamw": Case("schedulefree", "schedulefree", _plain("AdamWScheduleFree", foreach=True)),
    "schedule_free_sgd": Case("schedulefree", "schedulefree", _plain("SGDScheduleFree", foreach=True)),
    "schedule_free_radam": Case("schedulefree", "schedulefree", _plain("RAdamScheduleFree", foreach=True), second_step=6),
    "came_pytorch": Case("came-pytorch", "came_pytorch",
                         _plain("CAME", by_axolotl=True, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16))),
    "grokadamw": Case("grokadamw", "grokadamw", _plain("GrokAdamW")),
    "optimi_adamw": Case("torch-optimi", "optimi", _plain("AdamW", by_axolotl=True, foreach=False)),
    "stable_adamw": Case("torch-optimi", "optimi", _plain("StableAdamW", foreach=True)),
    "lomo": Case("lomo-optim", "lomo_optim", _lomo("Lomo")),
    "adalomo": Case("lomo-optim", "lomo_optim", _lomo("AdaLomo")),
    "galore_adamw": Case("galore-torch", "galore_torch", _projected("GaLoreAdamW", **_GALORE), _LOW_RANK),
    "galore_adafactor": Case("galore-torch", "galore_torch", _projected("GaLoreAdafactor", **_GALORE), _LOW_RANK),
    "apollo_adamw": Case("apollo-torch", "apollo_torch", _projected("APOLLOAdamW", **_APOLLO), _LOW_RANK),
    "apollo_adamw tensor svd": Case("apollo-torch", "apollo_torch",
                                    _projected("APOLLOAdamW", **{**_APOLLO, "proj": "svd", "scale_type": "tensor"}),
                                    {**_LOW_RANK, "optim_args": {"rank": 8, "proj": "svd", "scale_type": "tensor"}}),
    "adopt_adamw": Case("axolotl", "axolotl.utils.optimizers.adopt",
                        _plain("ADOPT", by_axolotl=True, decouple=True, foreach=True)),
    "adamc": Case("axolotl", "axolotl.utils.optimizers.adamc", _plain("AdamC", by_axolotl=True, foreach=True)),
    "adamw_torch_8bit": Case("torchao", "torchao.optim", _plain("AdamW8bit", block_size=256)),
    "adamw_torch_4bit": Case("torchao", "torchao.optim", _plain("AdamW4bit", block_size=256)),
    "ao_adamw_fp8": Case("torchao", "torchao.optim", _plain("AdamWFp8", by_axolotl=True, block_size=256)),
    "adamw_bnb_8bit": Case("bitsandbytes", "bitsandbytes.optim", _bnb("AdamW")),
    "lion_8bit": Case("bitsandbytes", "bitsandbytes.optim", _bnb("Lion")),
    "ademamix_8bit": Case("bitsandbytes", "bitsandbytes.optim", _bnb("AdEMAMix")),
    "rmsprop_bnb_8bit": Case("bitsandbytes", "bitsandbytes.optim", _bnb("RMSprop")),
    "ademamix": Case("bitsandbytes", "bitsandbytes.optim", _plain("AdEMAMix", optim_bits=32)),
    "sinkgd": Case("axolotl", "axolotl.utils.optimizers.sinkgd", _sinkgd),
    "galore_adamw_8bit": Case("galore-torch", "galore_torch", _projected("GaLoreAdamW8bit", **_GALORE), _LOW_RANK),
    "q_galore_adamw8bit": Case("q-galore-torch", "q_galore_torch", _q_galore,
                               {"qgalore_rank": 32, "qgalore_proj_group_size": 64}),
    "muon": Case("axolotl-contribs-mit", "axolotl.contribs.mit.muon.muon", _muon),
}  # fmt: skip
"""By axolotl's name of the optimizer, followed by the changes of `optim_args`."""


def run_case(name: str, dtype: str) -> Steps:
    """Runs two steps on the CPU."""
    case = CASES[name]
    with _as_on_a_gpu():
        library = importlib.import_module(case.module)
        return for_real(
            make_llama(getattr(torch, dtype), "cpu"),
            lambda module: case.make(library, module),
            second_step=case.second_step,
        )


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Skips the calls that require CUDA, and `torch.compile`, because a CPU's compiled code is not a GPU's."""
    plain: Any = lambda function=None, **_: function if function is not None else plain  # noqa: E731
    with (
        pytest.MonkeyPatch.context() as patch,
        own_registries(),
    ):  # overrides have keys by `id`, and Python reuses an `id`
        patch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor)
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        patch.setattr(torch, "compile", plain)
        yield


def _measure(names: Iterable[str]) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        entry: dict[str, Any] = {"package": f"{case.package} {importlib.metadata.version(case.package)}"}
        for dtype in DTYPES:
            steps = run_case(name, dtype)
            entry[dtype] = {"kept": steps.kept, "peaks": steps.peaks}
        measured[name] = entry
    return measured


if __name__ == "__main__":
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    known.update(_measure(sys.argv[1:] or CASES))
    FILE.write_text(json.dumps({name: known[name] for name in CASES}, indent=1) + "\n", encoding="utf-8")
