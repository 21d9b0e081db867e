"""A ledger made by hand that contains every case that a snapshot must show."""

from __future__ import annotations

from axmem_trace.ledger import Allocation, Ledger, Mark

MIB = 1 << 20
LEDGER = Ledger(
    allocations=(
        Allocation(
            nbytes=30 * MIB,
            allocated_tick=1,
            phase="load",
            step=0,
            role="weight",
            module="model.embed",
            op="aten.empty",
        ),
        Allocation(
            nbytes=12 * MIB, allocated_tick=2, freed_tick=7, module="model.layers.0", op="aten.mm.default", kept=True
        ),
        Allocation(nbytes=1000, allocated_tick=3, freed_tick=5, module="model.layers.0.mlp", op="aten.silu.default"),
        Allocation(
            nbytes=30 * MIB,
            allocated_tick=6,
            phase="backward",
            role="gradient",
            module="model.embed",
            op="aten.mm.default",
        ),
        Allocation(nbytes=0, allocated_tick=4, freed_tick=8),
        Allocation(nbytes=5 * MIB, allocated_tick=4, freed_tick=8, device="cpu"),
    ),
    marks=(
        Mark(tick=0, phase="load", step=0),
        Mark(tick=2, phase="forward", step=1),
        Mark(tick=6, phase="backward", step=1),
    ),
    ticks=12,
    empty_cache_ticks=(10,),
)
SETTINGS = ("expandable_segments:True", "expandable_segments:False", "roundup_power2_divisions:[16:4,>:8]")
