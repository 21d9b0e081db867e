"""The table of NVIDIA cards: names, memory, compute capability.

`Card.gib` is the memory that a process can use (`torch.cuda.get_device_properties(0).total_memory`). It is less than the
number on the box: the driver and ECC use a part. Each row says how its figure in GiB is known:

- `reported`: the "total capacity" that PyTorch prints on this card in public out-of-memory messages and environment
  reports ("GPU 0 has a total capacity of 79.10 GiB"). The figures were written from memory, not looked up. They differ by
  about 0.2 GiB between drivers; the smallest figure is used;
- `assumed`: no such figure is known. The figure is the nominal size minus the share that reported cards of the same
  generation lose.

Several cards may have the same name (`A100`: 80 GB and 40 GB). Then the first one in this table is used; `find_gpu`
reports which one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One row.

    Attributes:
        name: unique in this table.
        nominal_gb: the number on the box.
        gib: usable memory in GiB, as PyTorch prints it.
        capability: compute capability, major and minor.
        basis: how `gib` is known.
        other_names: names in `nvidia-smi` and in shops, without `NVIDIA`, `Tesla` and `GeForce`.
        shared: the card uses the system's memory, of which the host's programs need a part.
    """

    name: str
    nominal_gb: int
    gib: float
    capability: tuple[int, int]
    basis: Literal["reported", "assumed"]
    other_names: tuple[str, ...] = ()
    shared: bool = False


def _card(name: str, nominal_gb: int, gib: float, capability: tuple[int, int], basis: str, *other_names: str) -> Card:
    return Card(
        name=name,
        nominal_gb=nominal_gb,
        gib=gib,
        capability=capability,
        basis="reported" if basis == "reported" else "assumed",
        other_names=other_names,
        shared=name in _SHARED,
    )


_SHARED = {"GB10", "Jetson Thor", "Jetson AGX Orin 64GB", "Jetson AGX Orin 32GB"}
_PASCAL, _PASCAL_CONSUMER, _VOLTA, _TURING = (6, 0), (6, 1), (7, 0), (7, 5)
_AMPERE, _AMPERE_CONSUMER, _ORIN, _ADA, _HOPPER = (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)
_BLACKWELL, _BLACKWELL_ULTRA, _THOR, _BLACKWELL_CONSUMER, _SPARK = (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)

# fmt: off
DATA_CENTRE: tuple[Card, ...] = (
    _card("P100-16GB", 16, 15.89, _PASCAL, "reported", "P100", "P100-PCIE-16GB", "P100-SXM2-16GB"),
    _card("P100-12GB", 12, 11.91, _PASCAL, "assumed", "P100", "P100-PCIE-12GB"),
    _card("P40", 24, 22.38, _PASCAL_CONSUMER, "reported"),
    _card("P4", 8, 7.43, _PASCAL_CONSUMER, "reported"),
    _card("V100-16GB", 16, 15.77, _VOLTA, "reported", "V100", "V100-SXM2-16GB", "V100-PCIE-16GB", "V100-DGXS-16GB",
          "V100-FHHL-16GB"),
    _card("V100-32GB", 32, 31.73, _VOLTA, "reported", "V100", "V100-SXM2-32GB", "V100-SXM3-32GB", "V100-PCIE-32GB",
          "V100-DGXS-32GB", "V100S-PCIE-32GB", "V100S"),
    _card("T4", 16, 14.56, _TURING, "reported", "T4G"),
    _card("A2", 16, 14.54, _AMPERE_CONSUMER, "assumed"),
    _card("A10", 24, 22.06, _AMPERE_CONSUMER, "reported"),
    _card("A10G", 24, 22.06, _AMPERE_CONSUMER, "reported"),
    _card("A16", 16, 14.54, _AMPERE_CONSUMER, "assumed"),
    _card("A30", 24, 23.50, _AMPERE, "assumed"),
    _card("A40", 48, 44.35, _AMPERE_CONSUMER, "reported"),
    _card("A100-80GB", 80, 79.15, _AMPERE, "reported", "A100", "A100-SXM4-80GB", "A100-PCIE-80GB", "A100 80GB PCIe",
          "A100 SXM", "A100X"),
    _card("A100-40GB", 40, 39.39, _AMPERE, "reported", "A100", "A100-SXM4-40GB", "A100-PCIE-40GB", "A100 PCIe"),
    _card("A100-64GB", 64, 63.30, _AMPERE, "assumed", "A100", "A100-SXM-64GB"),
    _card("A800-80GB", 80, 79.15, _AMPERE, "assumed", "A800", "A800-SXM4-80GB", "A800 80GB PCIe"),
    _card("A800-40GB", 40, 39.39, _AMPERE, "assumed", "A800", "A800 40GB Active", "A800-SXM4-40GB", "A800-PCIE-40GB"),
    _card("L2", 24, 22.03, _ADA, "assumed"),
    _card("L4", 24, 22.03, _ADA, "reported"),
    _card("L20", 48, 44.39, _ADA, "assumed"),
    _card("L40", 48, 44.39, _ADA, "assumed", "L40G"),
    _card("L40S", 48, 44.39, _ADA, "reported"),
    _card("H100-80GB", 80, 79.10, _HOPPER, "reported", "H100", "H100 80GB HBM3", "H100 SXM", "H100 SXM5",
          "H100 SXM5 80GB"),
    _card("H100 PCIe", 80, 79.18, _HOPPER, "reported", "H100", "H100 PCIe 80GB", "H100 80GB PCIe", "H100 80GB HBM2e"),
    _card("H100 NVL", 94, 93.00, _HOPPER, "assumed", "H100", "H100 NVL 94GB"),
    _card("H100-96GB", 96, 95.00, _HOPPER, "assumed", "H100", "H100 96GB HBM3", "H100 SXM5 96GB"),
    _card("H100-64GB", 64, 63.00, _HOPPER, "assumed", "H100", "H100 64GB HBM2", "H100 SXM5 64GB"),
    _card("H800", 80, 79.10, _HOPPER, "assumed", "H800 SXM", "H800 80GB HBM3", "H800 PCIe"),
    _card("H20-96GB", 96, 95.00, _HOPPER, "assumed", "H20"),
    _card("H20-141GB", 141, 139.81, _HOPPER, "assumed", "H20", "H20-3e"),
    _card("GH200-96GB", 96, 94.50, _HOPPER, "reported", "GH200", "GH200 480GB", "GH200 120GB"),
    _card("GH200-144GB", 144, 141.00, _HOPPER, "assumed", "GH200", "GH200 144G HBM3e"),
    _card("H200", 141, 139.81, _HOPPER, "reported", "H200 SXM", "H200 NVL", "H200 141GB HBM3e"),
    _card("B200", 180, 178.35, _BLACKWELL, "reported", "B200 192GB", "B200 SXM"),
    _card("GB200", 186, 184.00, _BLACKWELL, "assumed", "GB200 192GB"),
    _card("B300", 270, 267.00, _BLACKWELL_ULTRA, "assumed", "B300 288GB", "B300 SXM6 AC"),
    _card("GB300", 278, 276.00, _BLACKWELL_ULTRA, "assumed", "GB300 288GB"),
)

DESKTOP: tuple[Card, ...] = (
    _card("GTX 1050 Ti", 4, 3.94, _PASCAL_CONSUMER, "reported"),
    _card("GTX 1060 6GB", 6, 5.92, _PASCAL_CONSUMER, "reported", "GTX 1060"),
    _card("GTX 1060 3GB", 3, 2.94, _PASCAL_CONSUMER, "assumed", "GTX 1060"),
    _card("GTX 1070", 8, 7.92, _PASCAL_CONSUMER, "reported"),
    _card("GTX 1070 Ti", 8, 7.92, _PASCAL_CONSUMER, "assumed"),
    _card("GTX 1080", 8, 7.92, _PASCAL_CONSUMER, "reported"),
    _card("GTX 1080 Ti", 11, 10.91, _PASCAL_CONSUMER, "reported"),
    _card("TITAN X (Pascal)", 12, 11.90, _PASCAL_CONSUMER, "assumed", "TITAN X"),
    _card("TITAN Xp", 12, 11.90, _PASCAL_CONSUMER, "reported"),
    _card("TITAN V", 12, 11.77, _VOLTA, "reported"),
    _card("GTX 1630", 4, 3.81, _TURING, "assumed"),
    _card("GTX 1650", 4, 3.81, _TURING, "reported", "GTX 1650 SUPER"),
    _card("GTX 1650 Ti", 4, 3.81, _TURING, "reported"),
    _card("GTX 1660", 6, 5.79, _TURING, "reported", "GTX 1660 SUPER"),
    _card("GTX 1660 Ti", 6, 5.79, _TURING, "reported"),
    _card("RTX 2060 6GB", 6, 5.78, _TURING, "reported", "RTX 2060"),
    _card("RTX 2060 12GB", 12, 11.70, _TURING, "assumed", "RTX 2060"),
    _card("RTX 2060 SUPER", 8, 7.76, _TURING, "reported"),
    _card("RTX 2070", 8, 7.76, _TURING, "reported"),
    _card("RTX 2070 SUPER", 8, 7.76, _TURING, "reported"),
    _card("RTX 2080", 8, 7.76, _TURING, "reported"),
    _card("RTX 2080 SUPER", 8, 7.76, _TURING, "reported"),
    _card("RTX 2080 Ti", 11, 10.75, _TURING, "reported"),
    _card("TITAN RTX", 24, 23.65, _TURING, "reported"),
    _card("RTX 3050 8GB", 8, 7.78, _AMPERE_CONSUMER, "assumed", "RTX 3050"),
    _card("RTX 3050 6GB", 6, 5.80, _AMPERE_CONSUMER, "assumed", "RTX 3050"),
    _card("RTX 3060 12GB", 12, 11.76, _AMPERE_CONSUMER, "reported", "RTX 3060"),
    _card("RTX 3060 8GB", 8, 7.78, _AMPERE_CONSUMER, "assumed", "RTX 3060"),
    _card("RTX 3060 Ti", 8, 7.78, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 3070", 8, 7.78, _AMPERE_CONSUMER, "reported"),
    _card("RTX 3070 Ti", 8, 7.78, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 3080 10GB", 10, 9.78, _AMPERE_CONSUMER, "reported", "RTX 3080"),
    _card("RTX 3080 12GB", 12, 11.76, _AMPERE_CONSUMER, "assumed", "RTX 3080"),
    _card("RTX 3080 Ti", 12, 11.76, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 3090", 24, 23.57, _AMPERE_CONSUMER, "reported"),
    _card("RTX 3090 Ti", 24, 23.69, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 4060", 8, 7.63, _ADA, "assumed"),
    _card("RTX 4060 Ti 16GB", 16, 15.60, _ADA, "reported", "RTX 4060 Ti"),
    _card("RTX 4060 Ti 8GB", 8, 7.63, _ADA, "assumed", "RTX 4060 Ti"),
    _card("RTX 4070", 12, 11.73, _ADA, "reported"),
    _card("RTX 4070 SUPER", 12, 11.73, _ADA, "assumed"),
    _card("RTX 4070 Ti", 12, 11.73, _ADA, "assumed"),
    _card("RTX 4070 Ti SUPER", 16, 15.70, _ADA, "assumed"),
    _card("RTX 4080", 16, 15.70, _ADA, "reported"),
    _card("RTX 4080 SUPER", 16, 15.70, _ADA, "assumed"),
    _card("RTX 4090", 24, 23.51, _ADA, "reported"),
    _card("RTX 4090 D", 24, 23.51, _ADA, "assumed", "RTX 4090D"),
    _card("RTX 4090 48GB", 48, 47.30, _ADA, "assumed"),
    _card("RTX 5050", 8, 7.52, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5060", 8, 7.52, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5060 Ti 16GB", 16, 15.47, _BLACKWELL_CONSUMER, "reported", "RTX 5060 Ti"),
    _card("RTX 5060 Ti 8GB", 8, 7.52, _BLACKWELL_CONSUMER, "assumed", "RTX 5060 Ti"),
    _card("RTX 5070", 12, 11.50, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5070 Ti", 16, 15.47, _BLACKWELL_CONSUMER, "reported"),
    _card("RTX 5080", 16, 15.47, _BLACKWELL_CONSUMER, "reported"),
    _card("RTX 5090", 32, 31.37, _BLACKWELL_CONSUMER, "reported"),
    _card("RTX 5090 D", 32, 31.37, _BLACKWELL_CONSUMER, "assumed", "RTX 5090D"),
    _card("RTX 5090 D v2", 24, 23.40, _BLACKWELL_CONSUMER, "assumed"),
)

WORKSTATION: tuple[Card, ...] = (
    _card("Quadro P4000", 8, 7.92, _PASCAL_CONSUMER, "assumed"),
    _card("Quadro P5000", 16, 15.89, _PASCAL_CONSUMER, "assumed"),
    _card("Quadro P6000", 24, 23.80, _PASCAL_CONSUMER, "assumed"),
    _card("Quadro GV100", 32, 31.73, _VOLTA, "assumed"),
    _card("T1000 8GB", 8, 7.76, _TURING, "assumed"),
    _card("T1000", 4, 3.81, _TURING, "assumed", "T600", "T1000 4GB"),
    _card("Quadro RTX 3000", 6, 5.78, _TURING, "assumed"),
    _card("RTX 6000 Ada", 48, 47.50, _ADA, "reported", "RTX 6000 Ada Generation", "6000 Ada", "RTX 6000"),
    _card("RTX 5880 Ada", 48, 47.50, _ADA, "assumed", "RTX 5880 Ada Generation"),
    _card("RTX 5000 Ada", 32, 31.60, _ADA, "assumed", "RTX 5000 Ada Generation", "RTX 5000"),
    _card("RTX 4500 Ada", 24, 23.51, _ADA, "assumed", "RTX 4500 Ada Generation", "RTX 4500"),
    _card("RTX 4000 Ada", 20, 19.55, _ADA, "assumed", "RTX 4000 Ada Generation", "RTX 4000 SFF Ada",
          "RTX 4000 SFF Ada Generation", "RTX 4000"),
    _card("RTX 2000 Ada", 16, 15.60, _ADA, "assumed", "RTX 2000 Ada Generation", "RTX 2000E Ada Generation"),
    _card("Quadro RTX 4000", 8, 7.76, _TURING, "assumed", "RTX 4000"),
    _card("Quadro RTX 5000", 16, 15.70, _TURING, "assumed", "RTX 5000"),
    _card("Quadro RTX 6000", 24, 23.65, _TURING, "assumed", "RTX 6000"),
    _card("Quadro RTX 8000", 48, 47.45, _TURING, "assumed", "RTX 8000"),
    _card("RTX A400", 4, 3.81, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A1000", 8, 7.78, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A2000", 6, 5.80, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A2000 12GB", 12, 11.76, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A4000", 16, 15.73, _AMPERE_CONSUMER, "reported", "A4000"),
    _card("RTX A4500", 20, 19.70, _AMPERE_CONSUMER, "assumed", "A4500"),
    _card("RTX A5000", 24, 23.69, _AMPERE_CONSUMER, "reported", "A5000"),
    _card("RTX A5500", 24, 23.69, _AMPERE_CONSUMER, "assumed", "A5500"),
    _card("RTX A6000", 48, 47.54, _AMPERE_CONSUMER, "reported", "A6000"),
    _card("RTX PRO 2000 Blackwell", 16, 15.47, _BLACKWELL_CONSUMER, "assumed", "RTX PRO 2000"),
    _card("RTX PRO 4000 Blackwell", 24, 23.40, _BLACKWELL_CONSUMER, "assumed", "RTX PRO 4000",
          "RTX PRO 4000 Blackwell SFF Edition"),
    _card("RTX PRO 4500 Blackwell", 32, 31.30, _BLACKWELL_CONSUMER, "assumed", "RTX PRO 4500",
          "RTX PRO 4500 Blackwell Server Edition"),
    _card("RTX PRO 5000 Blackwell", 48, 47.00, _BLACKWELL_CONSUMER, "assumed", "RTX PRO 5000",
          "RTX PRO 5000 48GB Blackwell"),
    _card("RTX PRO 5000 72GB Blackwell", 72, 70.90, _BLACKWELL_CONSUMER, "assumed", "RTX PRO 5000"),
    _card("RTX PRO 6000 Blackwell", 96, 94.97, _BLACKWELL_CONSUMER, "reported", "RTX PRO 6000", "RTX 6000 Pro",
          "RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell Workstation Edition",
          "RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell Max-Q", "RTX PRO 6000 Max-Q",
          "PRO 6000"),
)

SMALL_SYSTEMS: tuple[Card, ...] = (
    _card("GB10", 128, 119.60, _SPARK, "reported", "DGX Spark"),
    _card("Jetson Thor", 128, 122.00, _THOR, "assumed", "Thor", "Jetson AGX Thor"),
    _card("Jetson AGX Orin 64GB", 64, 61.30, _ORIN, "assumed", "Orin", "Jetson AGX Orin"),
    _card("Jetson AGX Orin 32GB", 32, 29.90, _ORIN, "assumed", "Orin", "Jetson AGX Orin"),
)

LAPTOP: tuple[Card, ...] = (
    _card("RTX 3050 4GB Laptop", 4, 3.81, _AMPERE_CONSUMER, "reported", "RTX 3050 Laptop", "RTX 3050 Ti Laptop"),
    _card("RTX 3050 6GB Laptop", 6, 5.80, _AMPERE_CONSUMER, "assumed", "RTX 3050 Laptop"),
    _card("RTX 3060 Laptop", 6, 5.80, _AMPERE_CONSUMER, "reported"),
    _card("RTX 3070 Laptop", 8, 7.78, _AMPERE_CONSUMER, "reported"),
    _card("RTX 3070 Ti Laptop", 8, 7.78, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 3080 16GB Laptop", 16, 15.73, _AMPERE_CONSUMER, "assumed", "RTX 3080 Laptop"),
    _card("RTX 3080 8GB Laptop", 8, 7.78, _AMPERE_CONSUMER, "assumed", "RTX 3080 Laptop"),
    _card("RTX 3080 Ti Laptop", 16, 15.73, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 4050 Laptop", 6, 5.64, _ADA, "reported"),
    _card("RTX 4060 Laptop", 8, 7.62, _ADA, "reported"),
    _card("RTX 4070 Laptop", 8, 7.62, _ADA, "reported"),
    _card("RTX 4080 Laptop", 12, 11.59, _ADA, "reported"),
    _card("RTX 4090 Laptop", 16, 15.57, _ADA, "reported"),
    _card("RTX 5050 Laptop", 8, 7.52, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5060 Laptop", 8, 7.52, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5070 Laptop", 8, 7.52, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5070 Ti Laptop", 12, 11.50, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5080 Laptop", 16, 15.47, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX 5090 Laptop", 24, 23.40, _BLACKWELL_CONSUMER, "assumed"),
    _card("RTX A1000 6GB Laptop", 6, 5.80, _AMPERE_CONSUMER, "assumed", "RTX A1000 Laptop"),
    _card("RTX A1000 4GB Laptop", 4, 3.81, _AMPERE_CONSUMER, "assumed", "RTX A1000 Laptop"),
    _card("RTX A2000 8GB Laptop", 8, 7.78, _AMPERE_CONSUMER, "assumed", "RTX A2000 Laptop"),
    _card("RTX A2000 4GB Laptop", 4, 3.81, _AMPERE_CONSUMER, "assumed", "RTX A2000 Laptop"),
    _card("RTX A3000 6GB Laptop", 6, 5.80, _AMPERE_CONSUMER, "assumed", "RTX A3000 Laptop"),
    _card("RTX A3000 12GB Laptop", 12, 11.76, _AMPERE_CONSUMER, "assumed", "RTX A3000 Laptop"),
    _card("RTX A4000 Laptop", 8, 7.78, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A4500 Laptop", 16, 15.73, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A5000 Laptop", 16, 15.73, _AMPERE_CONSUMER, "assumed"),
    _card("RTX A5500 Laptop", 16, 15.73, _AMPERE_CONSUMER, "assumed"),
    _card("RTX 500 Ada Laptop", 4, 3.81, _ADA, "assumed", "RTX 500 Ada Generation Laptop"),
    _card("RTX 1000 Ada Laptop", 6, 5.64, _ADA, "assumed", "RTX 1000 Ada Generation Laptop"),
    _card("RTX 2000 Ada Laptop", 8, 7.62, _ADA, "assumed", "RTX 2000 Ada Generation Laptop"),
    _card("RTX 3000 Ada Laptop", 8, 7.62, _ADA, "assumed", "RTX 3000 Ada Generation Laptop"),
    _card("RTX 3500 Ada Laptop", 12, 11.59, _ADA, "assumed", "RTX 3500 Ada Generation Laptop"),
    _card("RTX 4000 Ada Laptop", 12, 11.59, _ADA, "assumed", "RTX 4000 Ada Generation Laptop"),
    _card("RTX 5000 Ada Laptop", 16, 15.57, _ADA, "assumed", "RTX 5000 Ada Generation Laptop"),
    _card("RTX PRO 3000 Blackwell Laptop", 12, 11.50, _BLACKWELL_CONSUMER, "assumed",
          "RTX PRO 3000 Blackwell Generation Laptop"),
    _card("RTX PRO 4000 Blackwell Laptop", 16, 15.47, _BLACKWELL_CONSUMER, "assumed",
          "RTX PRO 4000 Blackwell Generation Laptop"),
    _card("RTX PRO 5000 Blackwell Laptop", 24, 23.40, _BLACKWELL_CONSUMER, "assumed",
          "RTX PRO 5000 Blackwell Generation Laptop"),
)
# fmt: on

CARDS: tuple[Card, ...] = (*DATA_CENTRE, *DESKTOP, *WORKSTATION, *SMALL_SYSTEMS, *LAPTOP)
"""Every card. If several have the same name, the name means the first of them."""
