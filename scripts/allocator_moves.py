"""The input of `real_allocator.py`: settings of the allocator, texts of settings, and random moves."""

from __future__ import annotations

import random

MIB = 1 << 20


PLENTY_MIB = 200 << 10
"""The size of a card that is never full."""


SETTINGS = (
    ("expandable_segments:False", PLENTY_MIB),
    ("expandable_segments:False", 1500),
    ("expandable_segments:True", PLENTY_MIB),
    ("expandable_segments:True", 700),
    ("expandable_segments:True", 2000),
    ("expandable_segments:False,roundup_power2_divisions:16", PLENTY_MIB),
    ("expandable_segments:False,roundup_power2_divisions:[1:2,4:8,64:16,>:0]", 1500),
    ("expandable_segments:True,roundup_power2_divisions:[16:4,>:8]", PLENTY_MIB),
    ("expandable_segments:True,roundup_power2_divisions:16", 1200),
    ("expandable_segments:False,large_segment_size_mb:64", 2000),
    ("expandable_segments:True,large_segment_size_mb:64", 1500),
    ("expandable_segments:False,max_split_size_mb:24", 1500),
    ("expandable_segments:False,max_split_size_mb:200", 1500),
    ("expandable_segments:False,max_split_size_mb:24,max_non_split_rounding_mb:40", 1500),
    ("expandable_segments:True,max_split_size_mb:24", 900),
    ("expandable_segments:False,garbage_collection_threshold:0.3,per_process_memory_fraction:0.9", 2500),
    ("expandable_segments:True,garbage_collection_threshold:0.3,per_process_memory_fraction:0.9", 2500),
    ("expandable_segments:False,garbage_collection_threshold:0.6,max_split_size_mb:30,per_process_memory_fraction:0.5",
     2500),
    ("expandable_segments:False,garbage_collection_threshold:0.3", 2500),
    ("expandable_segments:False,per_process_memory_fraction:0.7", 700),
    ("expandable_segments:True,roundup_power2_divisions:[256:1,512:2,>:4],per_process_memory_fraction:0.7", 700),
    ("expandable_segments:False,large_segment_size_mb:32,max_split_size_mb:100", 5000),
    ("expandable_segments:True,large_segment_size_mb:64,max_split_size_mb:128", 5000),
    ("expandable_segments:True,roundup_power2_divisions:[16:16,128:8,>:2],max_split_size_mb:64,"
     "garbage_collection_threshold:0.8,per_process_memory_fraction:0.95", 900),
    ("expandable_segments:False,roundup_power2_divisions:[1:8,2:4,4:2,>:1],max_split_size_mb:32,"
     "garbage_collection_threshold:0.6,per_process_memory_fraction:0.9,max_non_split_rounding_mb:21", 700),
)  # fmt: skip
"""The settings to try, each with the size of the card in MiB."""


_STRINGS = """
 expandable_segments:true expandable_segments:1 expandable_segments:True, ,expandable_segments:True
 expandable_segments:True,,max_split_size_mb:30 expandable_segments expandable_segments: expandable_segments=True
 expandable_segments:True,expandable_segments:False Expandable_Segments:True unknown:1 allocate_on_load:1
 roundup_power2_divisions:0 roundup_power2_divisions:1 roundup_power2_divisions:3 roundup_power2_divisions:4
 roundup_power2_divisions:[] roundup_power2_divisions:[>:4] roundup_power2_divisions:[3:1]
 roundup_power2_divisions:[256:3] roundup_power2_divisions:[256:0,>:0] roundup_power2_divisions:[256:-1]
 roundup_power2_divisions:[256:1,512:2,1024:4,>:8] roundup_power2_divisions:[64:8,32:4,>:2]
 roundup_power2_divisions:[1:2,2:2] roundup_power2_divisions:[65536:2,>:2] roundup_power2_divisions:[131072:2]
 roundup_power2_divisions:[256:4,>:4,512:8] roundup_power2_divisions:[512:8,>:4],max_split_size_mb:64
 max_split_size_mb:10 max_split_size_mb:20 max_split_size_mb:21 max_split_size_mb:0 max_split_size_mb:-1
 max_split_size_mb:abc max_split_size_mb:30.5 max_split_size_mb:+30 max_split_size_mb:99999999999
 max_non_split_rounding_mb:10 max_non_split_rounding_mb:21 roundup_bypass_threshold_mb:5
 garbage_collection_threshold:0 garbage_collection_threshold:1 garbage_collection_threshold:-0.5
 garbage_collection_threshold:.5 garbage_collection_threshold:0.5x per_process_memory_fraction:0
 per_process_memory_fraction:1 per_process_memory_fraction:1.1 per_process_memory_fraction:abc
 large_segment_size_mb:10 large_segment_size_mb:11 large_segment_size_mb:32,max_split_size_mb:30
 max_split_size_mb:30,large_segment_size_mb:32 large_segment_size_mb:32,max_non_split_rounding_mb:20
 backend:native backend:foo pinned_use_background_threads:True pinned_use_background_threads:x
 pinned_num_register_threads:4 pinned_num_register_threads:3 pinned_num_register_threads:128
 pinned_num_register_threads:256 pinned_num_register_threads:0 pinned_reserve_segment_size_mb:10
 pinned_max_cached_size_mb:4 pinned_max_round_threshold_mb:3 pinned_free_catch_all:True
 max_split_size_mb:18446744073709551616 max_split_size_mb:18446744073709551615 max_split_size_mb:0x40
 roundup_power2_divisions:[256:1,,512:2] roundup_power2_divisions:[0:1] roundup_power2_divisions:[256:1,>:0,>:4]
 per_process_memory_fraction:0x1p-1 garbage_collection_threshold:0x1p-2 garbage_collection_threshold:nan
 garbage_collection_threshold:1e-3 per_process_memory_fraction:-0.1 expandable_segments:[True] : ,
 release_lock_on_cudamalloc:True release_lock_on_hipmalloc:True pinned_use_cuda_host_register:True
 pinned_use_hip_host_register:True graph_capture_record_stream_reuse:True throw_on_cudamalloc_oom:True
"""
STRINGS = (
    *_STRINGS.split(),
    "",
    "expandable_segments: True",
    "expandable_segments:True expandable_segments:False",
    "roundup_power2_divisions:[256:1 512:2]",
    "max_split_size_mb: 30 ",
)
"""Settings that PyTorch accepts or refuses."""


Move = tuple[str, int, int]
"""(`a`, number, bytes): allocate; (`f`, number, 0): free; (`e`, 0, 0): empty the cache."""


def make_moves(seed: int, count: int) -> list[Move]:
    """Allocations and frees as in training. Sizes are small, repeated, at thresholds, or large; the order of frees is
    random."""
    dice = random.Random(seed)
    moves: list[Move] = []
    live: list[int] = []
    free_rate = (0.4, 0.47, 0.5)[dice.randrange(3)]
    for number in range(count):
        if live and dice.random() < free_rate:
            place = dice.randrange(len(live)) if dice.random() < 0.6 else -1
            moves.append(("f", live.pop(place), 0))
        elif dice.random() < 0.003:
            moves.append(("e", 0, 0))
        else:
            moves.append(("a", number, _make_size(dice)))
            live.append(number)
    return moves


_THRESHOLDS = (
    1,
    512,
    513,
    1024,
    123456,
    MIB,
    MIB + 1,
    2 * MIB,
    8 * MIB,
    10 * MIB - 512,
    10 * MIB - 1,
    10 * MIB,
    10 * MIB + 1,
    16 * MIB,
    20 * MIB,
    20 * MIB + 1,
    32 * MIB,
    33 * MIB,
    64 * MIB,
    100 * MIB,
)


def _make_size(dice: random.Random) -> int:
    low, high = ((1, 5000), (1, MIB + 1024), (MIB, 40 * MIB), (MIB, 300 * MIB), (0, 0))[dice.randrange(5)]
    return dice.randrange(low, high) if high else _THRESHOLDS[dice.randrange(len(_THRESHOLDS))]
