"""From facts to numbers: the `Report` and how it is made. No torch, no model and no YAML here."""

from axmem_trace.report.make import make_report
from axmem_trace.report.report import Report

__all__ = ["Report", "make_report"]
