"""Generation in training: the number of rows, the engine and the lengths.

Source: axolotl 0.21 `core/trainers/grpo/__init__.py`; TRL 1.14.1 `trainer/grpo_config.py` (defaults, `__post_init__`),
`trainer/grpo_trainer.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from axmem_trace.catalogue.lookup import HubUse
from axmem_trace.config.document.draft import Draft
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.objective import Engine, Rollouts

NUM_GENERATIONS = 8
"""TRL's default."""
COMPLETION_OF_TRL = 512
"""TRL's default of `max_completion_length`, 256 in TRL 1.9."""
TOKENS_WITHOUT_LIMIT = 20
"""axolotl passes an unset `max_completion_length` on as None, and `generate` then adds 20 tokens (transformers 5.20
`generation/utils.py` `_prepare_generated_length`)."""


def derive_rollouts(draft: Draft, num_gpus: int) -> Rollouts:
    """`Rollouts` from the `trl:` and `vllm:` blocks.

    Raises:
        ConfigError: sizes that TRL refuses.
    """
    trl = draft.sub("trl")
    steps, iterations = _steps_per_generation(draft, num_gpus), int(trl.get("num_iterations") or 1)
    engine, share = _engine(draft)
    is_grpo = draft.get("rl") != "ebft"  # for EBFT axolotl passes fewer keys to the trainer
    corrects = engine != "transformers" and not (is_grpo and trl.get("vllm_importance_sampling_correction") is False)
    accumulation = int(draft.get("gradient_accumulation_steps") or 1)
    return Rollouts(
        engine=engine,
        asynchronous=bool(trl.get("async_prefetch") or trl.get("use_data_producer")),
        engine_share=share,
        engine_sleeps=bool(trl.get("vllm_enable_sleep_mode")) and engine == "vllm_colocate",
        steps_per_generation=steps,
        iterations=iterations,
        num_generations=int(trl.get("num_generations") or NUM_GENERATIONS),
        scores_old_policy=corrects or accumulation % (steps * iterations) != 0,
        corrects_sampling=corrects,
        temperature=float(trl.get("temperature") or 1.0),
        top_k=int(trl.get("top_k") or 0),
        top_p=float(trl.get("top_p") or 1.0),
        loss_type=str(trl.get("loss_type") or "dapo"),
        entropy_trains=is_grpo and bool(trl.get("entropy_coef") or trl.get("use_adaptive_entropy")),
    )


def find_reward_models(draft: Draft, rollouts: Rollouts | None, hub: HubUse) -> Rollouts | None:
    """`rollouts` with the models that `trl.reward_funcs` names. A note reports a model that is not found.

    A name is that of a model, not of a Python function, if it is an id with an owner or a directory (axolotl
    `get_reward_func`).
    """
    names = [str(name) for name in draft.sub("trl").get("reward_funcs") or ()]
    names = [name for name in names if "/" in name or ((draft.directory or Path()) / name).is_dir()]
    if rollouts is None or not names:
        return rollouts
    from axmem_trace.catalogue import find_base_model

    line, found = draft.line("trl.reward_funcs"), []
    rows = f"{rollouts.steps_per_generation} micro-batches"
    for name in names:
        try:
            found.append(find_base_model(name, hub=hub, base_directory=draft.directory))
        except ConfigError:
            text = (
                f"the configuration of the reward model {name} was not found: the model is not in the figures (the run "
                "needs more)"
            )
            draft.note("not_modelled", "trl.reward_funcs", text, line=line, direction="more")
            continue
        text = (
            f"the reward model {name} stays on the GPU, in the dtype of its checkpoint, and scores the rows of {rows} "
            "together. Its tokenizer is assumed to give as many tokens as the policy's. Its memory is part of `reference`"
        )
        draft.note("assumed", "trl.reward_funcs", text, line=line)
    return replace(rollouts, reward_models=tuple(found))


def trl_version(draft: Draft) -> tuple[int, int]:
    """Major and minor version of the TRL that the release pins."""
    version = Version(draft.release.pins["trl"].lstrip("="))
    return version.major, version.minor


def completion_of_rollouts(draft: Draft) -> int:
    """The longest completion."""
    given = draft.sub("trl").get("max_completion_length")
    if given:
        return int(given)
    if (
        draft.get("rl") == "ebft"
    ):  # axolotl passes the key to the trainer only if set (`core/trainers/ebft/__init__.py`)
        return 256 if trl_version(draft) == (1, 9) else COMPLETION_OF_TRL
    text = (
        f"without `trl.max_completion_length`, completions end after {TOKENS_WITHOUT_LIMIT} tokens: axolotl passes null to "
        "TRL, which replaces TRL's default"
    )
    draft.note("warning", "trl.max_completion_length", text, line=draft.line("trl"))
    return TOKENS_WITHOUT_LIMIT


def _steps_per_generation(draft: Draft, num_gpus: int) -> int:
    """The number of gradient accumulation steps, unless `generation_batch_size` sets another number."""
    trl, micro = draft.sub("trl"), int(draft.get("micro_batch_size") or 1)
    accumulation = int(draft.get("gradient_accumulation_steps") or 1)
    together = micro * max(1, num_gpus)
    given = trl.get("generation_batch_size") if draft.get("rl") != "ebft" else None
    size = int(given or together * accumulation)
    if size % together:
        raise draft.error(
            f"a generation batch must be a multiple of micro_batch_size x GPUs, {together}",
            "trl.generation_batch_size",
            remedy="change one of them",
        )
    generations = int(trl.get("num_generations") or NUM_GENERATIONS)
    if size % generations:
        draft.refuse(
            f"TRL fails: {size} rows are generated at once (micro_batch_size x gradient_accumulation_steps x GPUs), which "
            f"is not a multiple of the {generations} completions of each prompt",
            "trl.num_generations",
            remedy="make the product a multiple of trl.num_generations (8 if it is not set)",
        )
    return size // together


def _engine(draft: Draft) -> tuple[Engine, float]:
    trl = draft.sub("trl")
    if not trl.get("use_vllm"):
        return "transformers", 0.0
    if trl.get("vllm_mode") != "colocate":
        text = "completions come from a vLLM server on other GPUs: its memory there is not part of the figures"
        if not trl.get("vllm_mode"):
            text += " (`trl.vllm_mode` is not set, and axolotl's default is `server`)"
        draft.note("ruled", "trl.vllm_mode", text, line=draft.line("trl.vllm_mode") or draft.line("trl"))
        return "vllm_server", 0.0
    share = draft.sub("vllm").get("gpu_memory_utilization")
    return "vllm_colocate", draft.release.behaviour.colocated_share if share is None else float(share)
