"""Data, and other keys that a run needs but that do not change memory.

Source: axolotl `utils/schemas/{validation,config,datasets}.py`; `utils/data/wrappers.py` `get_dataset_wrapper`,
`prompt_strategies/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.document.foreign_keys import nearest_key
from axmem_trace.config.refusals.rule import Rule

PROMPT_STRATEGIES = frozenset(
    """
    alpaca_chat alpaca_instruct alpaca_w_system bradley_terry chat_template completion context_qa creative_acr
    input_output llama2_chat messages metharme orcamini pretrain pygmalion stepwise_supervised user_defined _synthetic
    alpaca explainchoice concisechoice summarizetldr jeopardy oasst gpteacher reflection
    """.split()
)
"""Modules of `prompt_strategies/`, then `DATASET_HANDLERS`."""
DATASET_FIELDS = frozenset(
    """
    path split type input_transform shards shards_idx preprocess_shards conversation chat_template chat_template_jinja
    data_files input_format name ds_type field field_human field_model field_messages field_tools field_thinking
    template_thinking_key message_field_role message_field_content message_property_mappings message_field_training
    message_field_training_detail split_thinking logprobs_field temperature roles_to_train train_on_eos train_on_eot
    roles drop_system_message trust_remote_code revision weight text_column skip field_chosen field_rejected
    step_separator max_completion_length train_on_last_step_only length sequence_length min_input_id max_input_id seed
    min_turns max_turns min_turn_length input_fraction
    """.split()
)
"""Fields of an item of `datasets`, of every kind (`utils/schemas/datasets.py`, 0.19 and 0.21)."""


def _is_draft(draft: Draft) -> bool:
    """True if the configuration names no data. It is not complete then, so other missing keys are not refused either."""
    return not draft.get("datasets") and not draft.get("pretraining_dataset")


DATA_RULES = (
    Rule(
        "learning_rate",
        lambda d: d.get("learning_rate") is None and not _is_draft(d),
        "learning_rate is required",
        "add `learning_rate: 2e-4`, for example",
    ),
    Rule(
        "push_dataset_to_hub",
        lambda d: d.get("push_dataset_to_hub") and d.get("hf_use_auth_token") is not True,
        "push_dataset_to_hub requires hf_use_auth_token: true",
        "add `hf_use_auth_token: true`, or remove push_dataset_to_hub",
    ),
    Rule(
        "chat_template",
        lambda d: d.get("chat_template") == "jinja" and not d.get("chat_template_jinja"),
        "chat_template: jinja requires chat_template_jinja",
        "add chat_template_jinja with the template",
    ),
)


def refuse_datasets(draft: Draft) -> None:
    """Checks the items of `datasets` and `test_datasets`: field names, prompt strategies, `type: sharegpt`
    (`deprecate_sharegpt_datasets`), and a jinja template that is missing."""
    if _is_draft(draft):
        text = "the configuration names no data, which axolotl needs; the figures do not depend on it"
        draft.note("warning", "datasets", text)
    for key, dataset in _datasets(draft):
        for name in dataset:
            if name not in DATASET_FIELDS:
                _report_field(draft, f"{key}.{name}", str(name))
        kind = dataset.get("type")
        if isinstance(kind, str) and kind.startswith("sharegpt") and key.startswith("datasets."):
            problem = "axolotl refuses this: `type: sharegpt` was removed"
            draft.refuse(problem, f"{key}.type", remedy="use `type: chat_template`")
        elif isinstance(kind, str) and not draft.get("rl"):
            _note_strategy(draft, f"{key}.type", kind)
        if dataset.get("chat_template") == "jinja" and not dataset.get("chat_template_jinja"):
            problem = "axolotl refuses this: chat_template: jinja requires chat_template_jinja"
            draft.refuse(problem, f"{key}.chat_template", remedy="add chat_template_jinja with the template")


def _report_field(draft: Draft, key: str, name: str) -> None:
    nearest = nearest_key(name, DATASET_FIELDS)
    advice = f"did you mean `{nearest}`?" if nearest else ""
    if draft.is_overridden(key):
        remedy = advice or f"it knows {', '.join(sorted(DATASET_FIELDS))}"
        draft.fail(draft.error("axolotl knows no such field of a dataset, and drops it", key, remedy=remedy))
        return
    text = f"axolotl knows no field `{name}` of a dataset and drops it"
    note = draft.note("warning" if advice else "ignored", key, f"{text}: {advice}" if advice else text)
    draft.strict.append(note)


def _note_strategy(draft: Draft, key: str, kind: str) -> None:
    """Warns about an unknown strategy. A name with dots may be the user's own module. Tokenised data needs no strategy."""
    name = kind.partition(":")[0]
    if name and "." not in name and name not in PROMPT_STRATEGIES:
        text = f"axolotl has no prompt strategy `{kind}`: the run fails unless the data is tokenised already"
        draft.note("warning", key, text)


def _datasets(draft: Draft) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("datasets", "test_datasets"):
        items = draft.get(key)
        for index, dataset in enumerate(items if isinstance(items, list) else ()):
            if isinstance(dataset, dict):
                yield f"{key}.{index}", dataset
