"""The cards that a run fits, found with as few estimates as possible."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.__main__ import main
from axmem_trace.advice import card_table
from axmem_trace.advice.cards import RunRefused, fit_cards, join_counts, smallest
from axmem_trace.advice.largest_batch import LargestBatch
from axmem_trace.catalogue.cards import Card
from axmem_trace.catalogue.gpus import find_gpu, list_usual_cards
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note
from axmem_trace.render.cards import render_fits
from axmem_trace.report.rank_types import RankUse
from axmem_trace.report.run_types import Refusal
from axmem_trace.units import GIB


def card(name, gib, capability=(8, 0)):
    return Card(name=name, nominal_gb=round(gib), gib=gib, capability=capability, basis="assumed")


class Run:
    """10 GiB live and, with enough memory, 12 GiB reserved; 0.5 GiB of context. On a card between these sizes, cached
    blocks are freed."""

    def __init__(self, cards, **changes):
        self.cards, self.changes, self.asked = {each.name: each for each in cards}, changes, []

    def __call__(self, name):
        self.asked.append(name)
        memory = round(self.cards[name].gib * GIB)
        reserved = min(12 * GIB, max(memory - GIB // 2, 10 * GIB))
        report = make_hand_made_report(memory)
        peak = replace(
            report.peak,
            counted_bytes=10 * GIB,
            reserved_bytes=reserved,
            device_bytes=reserved + GIB // 2,
            context_bytes=GIB // 2,
        )
        run = {**report.run, "allocator": "expandable_segments:True"}
        needed = max([peak.device_bytes, *(use.device_bytes for use in self.changes.get("ranks", ()))])
        return replace(report, peak=peak, run=run, needed_bytes=needed, **{"notes": (), **self.changes})


CARDS = [card("huge", 80), card("tiny", 8), card("enough", 14), card("nearly", 11), card("other", 24, (9, 0))]


def test_one_estimate_for_each_generation_and_for_undecided_cards():
    run = Run(CARDS)
    fits = fit_cards(CARDS, run)
    # "nearly" has memory for the live bytes, but not for the blocks that a larger card caches in addition
    assert run.asked == ["huge", "nearly", "other"]
    assert [(fit.card.name, fit.verdict) for fit in fits] == [
        ("tiny", "does not fit"),
        ("nearly", "tight"),
        ("enough", "fits with room"),
        ("other", "fits with room"),
        ("huge", "fits with room"),
    ]
    assert smallest(fits).card.name == "nearly"
    assert [fit.left_bytes for fit in fits[:3]] == [round(-4.5 * GIB), 0, round(1.5 * GIB)]


def test_a_generation_on_which_the_run_is_impossible_has_the_reason():
    def estimate_on(name):
        if name == "other":
            raise ConfigError("needs Ampere")
        return Run(CARDS)(name)

    found = {fit.card.name: fit for fit in fit_cards(CARDS, estimate_on)}
    assert (found["other"].verdict, found["other"].reason, found["other"].fits) == ("", "needs Ampere", False)
    refused = Run(
        CARDS, refusals=(Refusal(key="attn_implementation", line=1, value="", reason="no kernel", remedy=""),)
    )
    assert {fit.reason for fit in fit_cards(CARDS, refused)} == {"no kernel"}
    assert smallest(fit_cards(CARDS, refused)) is None


def test_unmodelled_memory_prevents_the_verdict_only_if_it_could_change_it():
    note = Note(kind="not_modelled", key="rl", text="rl is not in the figures", direction="more")
    found = {
        fit.card.name: fit.verdict for fit in fit_cards(CARDS, lambda name: replace(Run(CARDS)(name), notes=(note,)))
    }
    assert found == {
        "huge": "cannot say",
        "enough": "cannot say",
        "nearly": "cannot say",
        "other": "cannot say",
        "tiny": "does not fit",
    }


def test_the_table():
    cards = [*CARDS, card("twin", 14)]
    text = render_fits(fit_cards(cards, Run(cards)), "text")
    assert "enough (and 1 like it)    14.00    12.50     1.50  fits with room" in text
    assert "<- smallest" in next(line for line in text.splitlines() if line.startswith("nearly"))
    assert text.endswith("1 card: does not fit\n--all shows every card\n")
    every = render_fits(fit_cards(cards, Run(cards)), "text", everything=True)
    assert len(every.splitlines()) == 1 + len(cards)


def test_json():
    found = {each["card"]: each for each in json.loads(render_fits(fit_cards(CARDS, Run(CARDS)), "json"))}
    assert found["enough"]["fits"] is True
    assert found["enough"]["left_bytes"] == round(1.5 * GIB)
    assert found["tiny"]["fits"] is False


def test_each_number_of_cards_and_the_rank_that_needs_the_most():
    """Two GPUs: rank 1 reserves 2 GiB more than rank 0, 14.5 GiB of a card in all, so 14 GiB are not enough."""
    use = RankUse(
        ranks="1",
        count=1,
        basis="recorded",
        allocated_bytes=10 * GIB,
        active_bytes=10 * GIB,
        counted_bytes=14 * GIB,
        reserved_bytes=14 * GIB,
        device_bytes=14 * GIB + GIB // 2,
        phase="backward",
        step=1,
        host_bytes=0,
    )
    one, two = Run(CARDS), Run(CARDS, ranks=(use,))
    found = join_counts([fit_cards(CARDS, one), fit_cards(CARDS, two)], CARDS, (1, 2))
    by_run = {(fit.count, fit.card.name): fit for fit in found}
    assert by_run[1, "enough"].verdict == "fits with room"
    assert by_run[2, "enough"].verdict == "does not fit"
    assert by_run[2, "other"].left_bytes == round(9.5 * GIB)
    text = render_fits(found, "text")
    assert text.startswith("1 GPU:\n")
    assert "\n\n2 GPUs, each:\n" in text
    assert text.count("<- smallest") == 2
    assert {each["gpus"] for each in json.loads(render_fits(found, "json"))} == {1, 2}


def test_a_number_that_cannot_run_does_not_hide_the_others():
    error = ConfigError("the mesh needs 4 GPUs")
    found = join_counts([error, fit_cards(CARDS, Run(CARDS))], CARDS, (2, 4))
    assert {(fit.count, fit.reason) for fit in found} == {(2, "the mesh needs 4 GPUs"), (4, "")}
    with pytest.raises(ConfigError, match="needs 4 GPUs"):
        join_counts([error, error], CARDS, (2, 4))


def test_numbers_with_the_same_table_share_it():
    """With DDP, the number of ranks changes nothing."""
    fits = fit_cards(CARDS, Run(CARDS))
    text = render_fits(join_counts([fits, fits, fits], CARDS, (2, 4, 8)), "text")
    assert text.startswith("2, 4 or 8 GPUs, each:\ncard ")
    assert text.count("<- smallest") == 1


def test_a_refused_configuration_is_not_estimated():
    def estimate_on(name):
        if name == "other":
            raise RunRefused("the kernel needs Ampere")
        return Run(CARDS)(name)

    found = {fit.card.name: fit for fit in fit_cards(CARDS, estimate_on)}
    assert (found["other"].verdict, found["other"].reason) == ("", "the kernel needs Ampere")
    assert found["huge"].fits
    with_largest = [
        replace(fit, largest=LargestBatch(value=3, recorded=fit.card.name == "nearly")) for fit in found.values()
    ]
    text = render_fits(with_largest, "text")
    assert text.split()[:6] == ["card", "GiB", "needs", "left", "batch", "verdict"]
    assert "11.00    11.00     0.00      3  tight  <- smallest" in text
    row = next(each for each in json.loads(render_fits(with_largest, "json")) if each["card"] == "nearly")
    assert (row["largest_micro_batch"], row["largest_is_recorded"]) == (3, True)


def test_the_usual_cards():
    names = [each.name for each in list_usual_cards()]
    assert {"RTX 4090", "H100-80GB", "A100-80GB MIG 3g.40gb"} <= set(names)
    assert not [name for name in names if "Laptop" in name or "V100" in name or "GB10" in name]
    assert all(find_gpu(name).memory_bytes for name in names)


def test_on_the_command_line(capsys, monkeypatch):
    every = {each.name: each for each in list_usual_cards()}
    run = Run(every.values())

    def recipe_on(name, count, micro_batch):
        raise ConfigError("there is none")

    table_of = card_table.Run(estimate_on=lambda name, count: run(name), recipe_on=recipe_on, micro_batch=0)
    monkeypatch.setattr("axmem_trace.cli.gpus._make_run", lambda options, progress: table_of)
    assert main(["gpus", "run.yml"]) == 0
    out = capsys.readouterr().out
    assert out.count("<- smallest") == 1
    assert len(out.splitlines()) < 30
    run.changes = {"refusals": (Refusal(key="x", line=1, value="", reason="no", remedy=""),)}
    long = " ".join(["a-reason-of-many-words"] * 8)
    run.changes = {"refusals": (Refusal(key="x", line=1, value="", reason=long, remedy=""),)}
    assert main(["gpus", "run.yml"]) == 2
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert long in " ".join(out.split())
    run.changes = {"refusals": (Refusal(key="x", line=1, value="", reason="no", remedy=""),)}
    assert main(["gpus", "run.yml"]) == 2
    assert f"{len(every)} cards: can't run: no" in capsys.readouterr().out
    note = Note(kind="not_modelled", key="rl", text="rl is not in the figures", direction="more")
    run.changes = {"notes": (note,)}
    assert main(["gpus", "run.yml"]) == 4


def test_an_error_of_the_configuration_alone_is_reported_once(capsys, tmp_path):
    assert main(["gpus", str(tmp_path / "none.yml")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no such file" in err
    assert "none.yml" in err


@pytest.mark.parametrize("arguments", [["gpus"], ["gpus", "--all"]])
def test_nothing_to_do(capsys, arguments):
    assert main(arguments) == 2
    assert "name a configuration" in capsys.readouterr().err


def test_numbers_of_cards_on_the_command_line(capsys):
    assert main(["gpus", "run.yml", "--counts", "1,2", "--gpus", "2"]) == 2
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["gpus", "run.yml", "--counts", "1,0"])
    assert "at least 1 is needed" in capsys.readouterr().err
