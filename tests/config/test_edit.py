"""Keys are changed in a YAML text, and everything else stays."""

from __future__ import annotations

import pytest
import yaml

from axmem_trace.config.document.edit import cut_keys, edit_yaml

TEXT = """\
# a run
base_model: some/model   # the base

# how many at once
micro_batch_size: 4  # as many as fit
plugins:
  - axolotl.integrations.liger.LigerPlugin  # fast
  # no other

fsdp_config:
  offload_params: false
  state_dict_type: FULL_STATE_DICT  # whole
optimizer: 'adamw_torch'
empty:
"""


def changed_lines(old: str, new: str) -> tuple[list[str], list[str]]:
    before, after = old.splitlines(), new.splitlines()
    return [line for line in before if line not in after], [line for line in after if line not in before]


@pytest.mark.parametrize(
    ("settings", "gone", "came"),
    [
        ({"micro_batch_size": 2}, ["micro_batch_size: 4  # as many as fit"], ["micro_batch_size: 2  # as many as fit"]),
        ({"optimizer": "sgd"}, ["optimizer: 'adamw_torch'"], ["optimizer: sgd"]),
        ({"optimizer": None}, ["optimizer: 'adamw_torch'"], ["optimizer: null"]),
        ({"empty": True}, ["empty:"], ["empty: true"]),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin", "b.B"]}, [], ["  - b.B"]),
        ({"new": 3}, [], ["# added by axmem_trace fit", "new: 3"]),
        ({"micro_batch_size": 4}, [], []),
        (
            {"fsdp_config": {"offload_params": True}},
            ["  offload_params: false", "  state_dict_type: FULL_STATE_DICT  # whole"],
            ["  offload_params: true  # whole"],
        ),
    ],
)
def test_only_the_lines_of_the_key_change(settings, gone, came):
    edited = edit_yaml(TEXT, settings)
    assert yaml.safe_load(edited) == {**yaml.safe_load(TEXT), **settings}
    assert changed_lines(TEXT, edited) == (gone, came)


@pytest.mark.parametrize(
    "text",
    ["{a: 1, b: [2]}", "x: &here 1\na: *here\n", "a: 1\na: 2\n", "a: |\n  long\n  text\nb: 1", "a: 1\n...\n", ""],
)
def test_every_text_reads_as_requested(text):
    wanted = {**(yaml.safe_load(text) or {}), "a": 7, "c": ["d", {"e": False}]}
    assert yaml.safe_load(edit_yaml(text, {"a": 7, "c": ["d", {"e": False}]})) == wanted


def test_an_alias_keeps_its_value_if_its_anchors_key_changes():
    text = "size: &size 4\nmicro_batch_size: *size\n"
    assert yaml.safe_load(edit_yaml(text, {"micro_batch_size": 2})) == {"size": 4, "micro_batch_size": 2}
    assert yaml.safe_load(edit_yaml(text, {"size": 2})) == {"size": 2, "micro_batch_size": 4}


def test_keys_are_removed_with_their_comments():
    cut = cut_keys(TEXT, ["micro_batch_size", "plugins", "missing"])
    assert cut == (
        "# how many at once\n"
        "micro_batch_size: 4  # as many as fit\n"
        "plugins:\n"
        "  - axolotl.integrations.liger.LigerPlugin  # fast\n"
    )
