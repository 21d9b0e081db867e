"""Names of accelerators that are not CUDA cards, and why their memory isn't predicted here."""

from __future__ import annotations

import re

from axmem_trace.errors import ConfigError

_MAKERS: tuple[tuple[str, str, str], ...] = (
    ("AMD", r"(AMD)?(INSTINCT)?MI\d{2,3}[AX]?|.*(RADEON|INSTINCT).*|(AMD)?RX\d{4}.*|(AMD)?[679]\d{3}(XTX?|GRE)|"
            r"(AMD)?(PRO)?W[67]\d00X?|GFX\d+.*|(AMD)?RYZEN.*|STRIX(HALO|POINT)",
     "ROCm has its own allocator settings, attention kernels and library workspaces"),
    ("Intel", r"(INTEL)?(HABANA)?(GAUDI|HPU).*|(INTEL)?ARC.*|.*(PONTEVECCHIO|DATACENTER(GPU)?(MAX|FLEX)).*|"
              r"(INTEL)?(GPU)?(MAX1\d{3}|FLEX1\d0|IRIS.*|UHD.*)|INTEL.*",
     "PyTorch's XPU and HPU back ends have their own allocators and kernels"),
    ("Apple", r"(APPLE)?M[1-9](PRO|MAX|ULTRA)?|APPLE.*|MPS|MAC(BOOK|MINI|STUDIO|PRO).*",
     "the MPS back end shares the system's memory and has its own allocator, and lacks bitsandbytes and FlashAttention"),
    ("Google", r"(GOOGLE)?(CLOUD)?TPU.*|V[2-7](E|P|LITE(POD)?)\d*|TRILLIUM|IRONWOOD",
     "XLA compiles the whole step and plans its memory itself"),
    ("Amazon", r"(AWS)?((TRAINIUM|INFERENTIA).*|(TRN|INF)\d.*)", "the Neuron compiler plans its memory itself"),
    ("Huawei", r"(HUAWEI)?ASCEND.*|910[A-D]\d?|.*NPU", "torch_npu has its own allocator and kernels"),
    ("another maker", r"(MOORETHREADS)?MTT?S\d+.*|CEREBRAS.*|WSE\d?|GROQ.*|IPU.*|GRAPHCORE.*|CAMBRICON.*|MLU\d+.*|"
                      r"BIREN.*|KUNLUN.*|HYGON.*|DCU.*", "its back end has its own allocator and kernels"),
)  # fmt: skip


def refuse_other_makers(text: str) -> None:
    """Refuses the name of an accelerator by AMD, Intel, Apple, Google or another maker than NVIDIA.

    Raises:
        ConfigError: it is such a name; the message says why it can't be predicted, and what to use instead.
    """
    folded = re.sub(r"[^A-Z0-9]", "", text.upper())
    for maker, pattern, reason in _MAKERS:
        if re.fullmatch(pattern, folded):
            raise ConfigError(
                problem=f"{text.strip()!r} is not a CUDA GPU; it is made by {maker}: {reason}",
                remedy="name an NVIDIA card, or give a size such as 192GiB to compare only with its memory",
            )
