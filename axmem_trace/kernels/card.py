"""Properties of the card that attention kernels need."""

from __future__ import annotations

import torch

from axmem_trace.tracing.context import KernelContext

HALF = (torch.float16, torch.bfloat16)
"""Dtypes that attention kernels support; some of SDPA's kernels support fp32 too."""
_SMS = {
    (6, 0): 56,
    (6, 1): 30,
    (7, 0): 80,
    (7, 5): 40,
    (8, 0): 108,
    (8, 6): 84,
    (8, 7): 16,
    (8, 9): 142,
    (9, 0): 132,
    (10, 0): 148,
    (10, 3): 148,
    (11, 0): 20,
    (12, 0): 188,
    (12, 1): 48,
}
"""Streaming multiprocessors of the data-centre or workstation card of each compute capability (datasheets: P100, P40,
V100, T4, A100, A6000, Orin, L40S, H100 SXM, B200, B300, Thor, RTX PRO 6000, GB10). Small cards of the same generation
have fewer; the number only decides whether a short batch's keys are split."""


def sms_of(capability: tuple[int, int]) -> int:
    """`multiProcessorCount` of the usual card of a compute capability."""
    return _SMS.get(capability, 108)


def num_sms(context: KernelContext) -> int:
    """`multiProcessorCount`: `context.num_sms` if it is set, else that of the card's generation."""
    return context.num_sms or sms_of(context.compute_capability)
