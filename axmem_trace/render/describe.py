"""Parts of a report in words: verdict, model, peak, moments. Text and HTML print the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axmem_trace.units import format_bytes, gib

if TYPE_CHECKING:
    from axmem_trace.report.report import Report
    from axmem_trace.report.types import Engine


def headline(report: Report) -> tuple[tuple[str, str], ...]:
    """The figures that axolotl logs and what `nvidia-smi` would show, in GiB, each with an explanation."""
    peak = report.peak
    nccl = f" and {format_bytes(peak.nccl_bytes)} of NCCL's buffers" if peak.nccl_bytes else ""
    context = f"reserved + {format_bytes(peak.context_bytes)} of CUDA context{nccl} (assumed)"
    return (
        (f"{gib(peak.active_bytes):8.2f}", "memory/max_active (GiB)"),
        (f"{gib(peak.counted_bytes):8.2f}", "memory/max_allocated (GiB)"),
        (f"{gib(peak.reserved_bytes):8.2f}", "memory/device_reserved (GiB)"),
        (f"{gib(peak.device_bytes):8.2f}", f"nvidia-smi (GiB): {context}"),
    )


def needed_bytes(report: Report) -> int:
    """What the verdict compares with the card, without the share of an engine on the same card, which has its own line."""
    return report.peak.device_bytes if report.engine else max(report.needed_bytes, 0) or report.peak.device_bytes


def describe_peak(report: Report) -> str:
    """When and where the most bytes are alive."""
    peak = report.peak
    place = f" in {peak.module}" if peak.module else ""
    op = f" ({peak.op})" if peak.op else ""
    return f"{describe_moment(peak.phase, peak.step)}{place}{op}"


def describe_fit(report: Report) -> str:
    """The verdict, in a sentence."""
    gpu, failure = report.gpu, report.out_of_memory
    if report.why:
        return f"cannot say: {report.why}"
    if report.engine is not None and report.fits is False:
        need = f"{format_bytes(report.peak.device_bytes)} for training"
        return f"NO: {describe_engine(report.engine)} ({need})"
    if report.fits is None or report.headroom_bytes is None:
        return "not asked: name a card with --gpu"
    card = f"{gpu.name} ({format_bytes(gpu.memory_bytes)})" if gpu.name else format_bytes(gpu.memory_bytes)
    if report.fits:
        return f"yes, on {card}: {format_bytes(report.headroom_bytes)} left"
    if failure is not None:
        place = f" in {failure.module}" if failure.module else ""
        return (
            f"NO, not on {card}: {format_bytes(failure.requested_bytes)} cannot be allocated in "
            f"{describe_moment(failure.phase, failure.step)}{place}; with unlimited memory the run takes "
            f"{format_bytes(needed_bytes(report))}"
        )
    if report.headroom_bytes >= 0:
        left = format_bytes(report.headroom_bytes)
        return f"NO, not on {card} with {format_bytes(gpu.margin_bytes)} to stay free: {left} left"
    return f"NO, not on {card}: {format_bytes(-report.headroom_bytes)} too much"


def describe_engine(engine: Engine) -> str:
    """Its share of the card, and whether it can start."""
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
    """A count to three significant digits.

    >>> format_count(0), format_count(23040), format_count(8030261248)
    ('0', '23.0 K', '8.03 B')
    """
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {letter}"
    return str(number)


def describe_moment(phase: str, step: int) -> str:
    """`backward of step 2`, `loading`, `evaluation`."""
    named = {"load": "loading", "generate": "generation", "score": "scoring"}
    what = named.get(phase, phase)
    if not step:
        return "evaluation" if phase == "eval" else what if phase == "load" else f"{what} in evaluation"
    return "loading" if phase == "load" else f"{what} of step {step}"
