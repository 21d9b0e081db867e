"""Parts of a report in words: verdict, model, peak, moments. Text and HTML print the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.report.report import Report
    from axmem_trace.report.types import Engine


def headline(report: Report) -> tuple[tuple[str, str], ...]:
    """The figures that axolotl logs, and the figure of `nvidia-smi`, in GiB, each with an explanation."""
    peak = report.peak
    nccl = f" and {format_bytes(peak.nccl_bytes)} of NCCL's buffers" if peak.nccl_bytes else ""
    context = f"reserved + {format_bytes(peak.context_bytes)} of CUDA context{nccl} (assumed)"
    between = describe_range(report)
    context += f"; {between}" if between else ""
    return (
        (f"{gib(peak.active_bytes):8.2f}", "memory/max_active (GiB)"),
        (f"{gib(peak.counted_bytes):8.2f}", "memory/max_allocated (GiB)"),
        (f"{gib(peak.reserved_bytes):8.2f}", "memory/device_reserved (GiB)"),
        (f"{gib(peak.device_bytes):8.2f}", f"nvidia-smi (GiB): {context}"),
    )


def describe_range(report: Report) -> str:
    """The range of the needed memory, from measured runs; empty for a report without a range."""
    found = report.device_range
    if not found.runs:
        return ""
    return f"{gib(found.low_bytes):.1f} to {gib(found.high_bytes):.1f} GiB, as in {found.runs} measured runs"


def needed_bytes(report: Report) -> int:
    """The bytes that the verdict compares with the card. The share of an engine on the same card is not included,
    because it has its own line."""
    return report.peak.device_bytes if report.engine else max(report.needed_bytes, 0) or report.peak.device_bytes


def logged_lines(report: Report) -> list[tuple[str, tuple[int, int, int]]]:
    """Each line that axolotl logs: its name, and its active, allocated and reserved bytes. If nothing logs them, the
    figures are those of PyTorch's functions."""
    if report.logged:
        return [(each.name, (each.active_bytes, each.allocated_bytes, each.reserved_bytes)) for each in report.logged]
    names = (("step_1", "first step"), ("step_2", "later steps"), ("eval", "evaluation"))
    uses = [(words, report.phases[name]) for name, words in names if name in report.phases]
    return [
        (words, (max(use.active_bytes, use.counted_bytes), use.counted_bytes, use.reserved_bytes))
        for words, use in uses
    ]


def describe_peak(report: Report) -> str:
    """The phase and the module of the peak."""
    peak = report.peak
    place = f" in {peak.module}" if peak.module else ""
    op = f" ({peak.op})" if peak.op else ""
    return f"{describe_moment(peak.phase, peak.step)}{place}{op}"


def describe_verdict(report: Report) -> str:
    """The verdict, the needed memory and the free memory, in one sentence."""
    gpu, need = report.gpu, format_bytes(needed_bytes(report))
    each = " on each GPU" if gpu.count > 1 else ""
    if not gpu.memory_bytes or report.headroom_bytes is None:
        return f"needs {need}{each}; name a card to see whether that fits (--gpu, gpu=)"
    size = format_bytes(gpu.memory_bytes)
    card = f"{gpu.name} ({size})" if gpu.name and gpu.name != size else size
    cards = f"{gpu.count} x {card}" if gpu.count > 1 else card
    left = report.headroom_bytes
    rest = f"{format_bytes(left)} left" if left >= 0 else f"{format_bytes(-left)} too much"
    beside = f" for training and {format_bytes(report.engine.bytes)} for {report.engine.name}" if report.engine else ""
    margin = f" with {format_bytes(gpu.margin_bytes)} to stay free" if gpu.margin_bytes else ""
    because = f": {report.tight_because}" if report.tight_because else ""
    return f"{report.verdict.upper()} on {cards}{margin}: needs {need}{beside}{each}, {rest}{because}"


def describe_fit(report: Report) -> str:
    """The verdict in one sentence, with everything that belongs to it: the reason if there is no verdict, an engine,
    the request that fails."""
    parts = [f"{describe_verdict(report)}{': ' if report.why else ''}{report.why}"]
    if report.engine is not None:
        parts.append(describe_engine(report.engine))
    failure = report.out_of_memory
    if failure is not None:
        place = f" in {failure.module}" if failure.module else ""
        moment = describe_moment(failure.phase, failure.step)
        parts.append(f"an allocation of {format_bytes(failure.requested_bytes)} fails in {moment}{place}")
    return "; ".join(parts)


def describe_engine(engine: Engine) -> str:
    """The engine's share of the card, and whether the engine can start."""
    share = f"{engine.name} asks for {engine.share:g} of the card, {format_bytes(engine.bytes)}"
    if not engine.starts:
        return f"the engine won't start: {share}, and {format_bytes(engine.free_at_start_bytes)} is free when it starts"
    rest = "it frees this while training (sleep mode)" if engine.sleeps else "in addition to the figures of training"
    return f"{share}, {rest}"


def describe_model(report: Report) -> str:
    """Type, class and size of the model, and where its configuration came from."""
    model = report.model
    share = model.trainable_parameters / model.parameters if model.parameters else 0.0
    counts = f"{format_count(model.parameters)} parameters, {format_count(model.trainable_parameters)} trainable"
    return f"{model.class_name}, {counts} ({share:.2%}); config.json: {model.config_source}"


def format_count(number: int) -> str:
    """A count with three significant digits.

    >>> format_count(0), format_count(23040), format_count(8030261248)
    ('0', '23.0 K', '8.03 B')
    """
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {letter}"
    return str(number)


def describe_moment(phase: str, step: int) -> str:
    """`backward of step 2`, `loading`, `evaluation`, `saving`."""
    named = {"load": "loading", "generate": "generation", "score": "scoring", "save": "saving"}
    what = named.get(phase, phase)
    if not step:
        return "evaluation" if phase == "eval" else what if phase in ("load", "save") else f"{what} in evaluation"
    return "loading" if phase == "load" else f"{what} of step {step}"
