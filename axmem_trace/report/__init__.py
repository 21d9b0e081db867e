"""The `Report`, and how it is made from the recorded facts. No torch, no model and no YAML here.

make        `make_report`: all parts, and a check that every table adds up
peak        the peak, and the request for which the card was too small
resident    the maximum of each kind of memory at any time, on the GPU and on the host
phases      the peak of each phase, and the timeline
holders     the largest users of memory at the peak, in a user's words
modules     memory of each module; `row_folding`: repeated layers in one row
dtypes      parameters and buffers by dtype
ranks       several GPUs: the figures of each group of ranks
engine      an inference engine on the same card
moments     the allocated memory at several moments, for charts
verdict     whether the run fits; `accuracy`: the error of such figures in measured runs
wording     the run in words; `warn`, `alternatives`: notes that depend on the figures
report, types, run_types, rank_types, codec    the fields, and their JSON
"""

from axmem_trace.report.make import make_report
from axmem_trace.report.report import Report

__all__ = ["Report", "make_report"]
