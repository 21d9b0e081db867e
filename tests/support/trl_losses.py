"""TRL's own loss on the model and the batches of one of our objectives: the oracle of `training/objectives`.

The methods of TRL's trainers are called without a trainer, on an object that has the attributes they read.
"""

from __future__ import annotations

import inspect
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils.operations import convert_outputs_to_fp32

from axmem_trace.models.built import BuiltModel
from axmem_trace.training.objectives import Objective

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
Compute = Callable[[dict[str, torch.Tensor]], torch.Tensor]


class _NoLaunch:
    """A Triton kernel whose launch does nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def triton_wrapper() -> Iterator[None]:
    """Makes TRL select its Triton path. Its Python code runs, but its kernels do not."""
    import trl.kernels.logprob_entropy as kernels
    import trl.trainer.utils as helpers

    with ExitStack() as stack:
        for name in ("_forward_kernel", "_backward_kernel"):
            stack.enter_context(patch.object(kernels, name, _NoLaunch()))
        stack.enter_context(patch.object(helpers, "_supports_trl_loss_kernel", lambda *args: True))
        yield


class TrlObjective(Objective):
    """An objective with the batches and models of `ours`, and the loss of TRL."""

    def __init__(self, ours: Any, built: BuiltModel) -> None:
        for model in (built.module, built.reference):
            if model is not None:  # as after accelerate's `prepare_model`, without autocast
                model.forward = convert_outputs_to_fp32(model.forward)
        self.ours = ours
        self._compute = _TRAINERS[ours.settings.method](ours, built.module)

    def batches(self, recipe: Any) -> Any:
        return self.ours.batches(recipe)

    def evaluation_batch(self, recipe: Any) -> Any:
        return self.ours.evaluation_batch(recipe)

    def loss(self, run_model: Any, inputs: Any) -> Any:
        return self._compute(inputs), None

    def extra_models(self) -> Any:
        return self.ours.extra_models()


def _itself(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _attributes(ours: Any, model: Any) -> dict[str, Any]:
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=_itself,
        gather_for_metrics=_itself,
        reduce=_itself,
        unwrap_model=_itself,
        autocast=nullcontext,
        num_processes=1,
        sync_gradients=True,
    )
    settings = ours.settings
    return {
        "model": model,
        "ref_model": ours.reference.model,
        "accelerator": accelerator,
        "beta": settings.beta,
        "aux_loss_enabled": bool(ours.router_loss),
        "router_aux_loss_coef": ours.router_loss,
        "_tp_size": 1,
        "use_liger_kernel": settings.chunked,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_is_vlm": False,
        "is_fsdp_enabled": False,
        "precompute_ref_logps": settings.reference.kind == "precomputed",
        "label_smoothing": settings.label_smoothing,
        "args": SimpleNamespace(
            gradient_checkpointing_kwargs={"use_reentrant": False}, center_rewards_coefficient=settings.centring or None
        ),
    }


def _bound(trainer: Any, me: Any, *names: str) -> None:
    """Methods of the trainer's class, bound to `me`."""
    for name in names:
        function = inspect.unwrap(inspect.getattr_static(trainer, name))
        static = isinstance(inspect.getattr_static(trainer, name), staticmethod)
        setattr(me, name, function if static else function.__get__(me))


def _routers(model: Any) -> dict[str, Any]:
    """The attribute names of ORPO and CPO, which read only the model's configuration."""
    return {"aux_loss_coef": getattr(model.config, "router_aux_loss_coef", 0.0)}


def _dpo(ours: Any, model: Any) -> Compute:
    from trl import DPOTrainer

    settings = ours.settings
    me = SimpleNamespace(
        **_attributes(ours, model),
        loss_types=list(settings.loss_types),
        ld_alpha=settings.length_bias,
        loss_weights=[1.0] * len(settings.loss_types),
        f_divergence_type="reverse_kl",
        use_weighting=settings.weighted,
    )
    _bound(DPOTrainer, me, "_get_per_token_logps_and_entropies", "_compute_loss")
    return lambda inputs: me._compute_loss(model, inputs, False)


def _kto(ours: Any, model: Any) -> Compute:
    from trl import KTOTrainer

    me = SimpleNamespace(
        **_attributes(ours, model), calculate_KL=True, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0
    )
    _bound(KTOTrainer, me, "_get_per_token_logps_and_entropies", "_compute_kl_logps", "_compute_loss")
    return lambda inputs: me._compute_loss(model, inputs, False)


def _orpo(ours: Any, model: Any) -> Compute:
    from trl.experimental.orpo import ORPOTrainer

    me = SimpleNamespace(**_attributes(ours, model), is_encoder_decoder=False, padding_value=0, **_routers(model))
    _bound(
        ORPOTrainer,
        me,
        "concatenated_inputs",
        "get_batch_logps",
        "concatenated_forward",
        "odds_ratio_loss",
        "get_batch_loss_metrics",
    )
    return lambda inputs: me.get_batch_loss_metrics(model, inputs)[0]


def _simpo(ours: Any, model: Any) -> Compute:
    from trl.experimental.cpo import CPOTrainer

    settings = ours.settings
    me = SimpleNamespace(
        **_attributes(ours, model),
        is_encoder_decoder=False,
        pad_token_id=0,
        alpha=0.0,
        **_routers(model),
        cpo_alpha=float(settings.likelihood),
        loss_type="simpo",
        simpo_gamma=settings.gamma,
    )
    _bound(
        CPOTrainer,
        me,
        "concatenated_inputs",
        "get_batch_logps",
        "concatenated_forward",
        "cpo_loss",
        "get_batch_loss_metrics",
    )
    return lambda inputs: me.get_batch_loss_metrics(model, inputs)[0]


def _reward(ours: Any, model: Any) -> Compute:
    from trl import RewardTrainer

    me = SimpleNamespace(**_attributes(ours, model))
    _bound(RewardTrainer, me, "compute_loss")
    return lambda inputs: me.compute_loss(model, dict(inputs))


def _grpo(ours: Any, model: Any) -> Compute:
    from trl import GRPOTrainer

    settings, rollouts = ours.settings, ours.rollouts
    attributes = _attributes(ours, model)
    attributes["beta"] = settings.beta if settings.reference.kind != "none" else 0.0
    attributes["args"] = SimpleNamespace(
        use_bias_correction_kl=False, delta=None, steps_per_generation=rollouts.steps_per_generation
    )
    forward = model.get_base_model().forward if hasattr(model, "get_base_model") else type(model).forward
    me = SimpleNamespace(
        **attributes,
        temperature=rollouts.temperature,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        loss_type=rollouts.loss_type,
        epsilon_low=0.2,
        epsilon_high=0.2,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=2,
        _entropy_bonus_enabled=False,
        max_completion_length=settings.completion_tokens,
        model_kwarg_keys=inspect.signature(forward).parameters,
    )
    _bound(
        GRPOTrainer, me, "_full_logits_logps", "_chunked_logps", "_get_per_token_logps_and_entropies", "_compute_loss"
    )

    def score(run_model: Any, which: Any, ids: torch.Tensor, mask: torch.Tensor, rows: int) -> torch.Tensor:
        found: torch.Tensor = me._get_per_token_logps_and_entropies(
            which, ids, mask, settings.completion_tokens, batch_size=rows
        )[0]
        return found

    ours._score_in_chunks = score
    return lambda inputs: me._compute_loss(model, ours.next_inputs(model))


_TRAINERS: dict[str, Callable[[Any, Any], Compute]] = {
    "dpo": _dpo,
    "ipo": _dpo,
    "kto": _kto,
    "orpo": _orpo,
    "simpo": _simpo,
    "reward": _reward,
    "grpo": _grpo,
    "gdpo": _grpo,
}
