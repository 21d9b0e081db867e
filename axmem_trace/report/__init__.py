"""From facts to numbers: the `Report` and how it is made. No torch, no model and no YAML here.

make        `make_report`: all parts, and a check that every table adds up
peak        the peak, and where the card was too small
resident    the maximum of each kind of memory at any time, on the GPU and on the host
phases      the peak of each phase, and the timeline
holders     the largest users of memory at the peak, in a user's words
modules     memory of each module; `row_folding`: repeated layers in one row
dtypes      parameters and buffers by dtype
ranks       several GPUs: the figures of each group of ranks
engine      an inference engine on the same card
moments     what was allocated at several points, for charts
verdict     whether it fits; `accuracy`: how far such figures were wrong in measured runs
wording     the run in words; `warn`, `alternatives`: notes that the figures give reason for
report, types, run_types, rank_types, codec    the fields, and their JSON
"""

from axmem_trace.report.make import make_report
from axmem_trace.report.report import Report

__all__ = ["Report", "make_report"]
