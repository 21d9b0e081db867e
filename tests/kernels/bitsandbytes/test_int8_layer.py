"""`Linear8bitLt`, compared with arithmetic by hand. Sources: bitsandbytes 0.50 `autograd/_functions.py`
(`MatMul8bitLt`), `backends/cuda/ops.py`, `backends/default/ops.py`. All layers: 1000 tokens, 256 input and 512 output
features."""

from __future__ import annotations

from collections import Counter

import torch
from support.bnb_layer_probe import make_8bit, probe
from support.kernel_recording import gpu_recording, recording_on

from axmem_trace.kernels.bitsandbytes.cuda_backend import _cuda_kernels
from axmem_trace.kernels.bitsandbytes.rules import int8_vectorwise_quant
from axmem_trace.tracing.recording_mode import RecordingMode

INPUT, OUTPUT = 512_000, 1_024_000  # bf16: 1000 * 256 * 2 and 1000 * 512 * 2


def test_forward_has_int32_fp16_and_bf16_results_at_the_same_time():
    seen = probe(make_8bit(256, 512), 1, 1000, 256)
    # the input, its int8 copy (256,000) and row scales (1000 * 4); then the int32 product (1000 * 512 * 4), its fp16
    # result and the cast to bf16
    assert seen.forward_peak == INPUT + 256_000 + 4_000 + 2_048_000 + 1_024_000 + 1_024_000
    # the input is kept because of its dtype (ctx.tensors = (None, subA, A)), and the output
    assert seen.kept == [OUTPUT, INPUT]


def test_outlier_search_dominates_if_the_output_is_narrow():
    seen = probe(make_8bit(256, 8), 1, 1000, 256)
    # the input, its fp16 copy, int8 rows and scales, absolute values in fp16, and their comparison (1 byte each)
    assert seen.forward_peak == 2 * INPUT + 256_000 + 4_000 + 512_000 + 256_000


def test_without_a_threshold_there_is_no_outlier_search():
    seen = probe(make_8bit(256, 8, threshold=0.0), 1, 1000, 256)
    # the input, its fp16 copy, int8 rows and scales
    assert seen.forward_peak == 2 * INPUT + 256_000 + 4_000
    assert not seen.notes.of("load_in_8bit")


def test_fp16_is_not_cast():
    seen = probe(make_8bit(256, 512), 1, 1000, 256, dtype=torch.float16)
    assert seen.forward_peak == INPUT + 256_000 + 4_000 + 2_048_000 + 1_024_000


def test_fp32_input_gives_fp32_output_even_under_autocast():
    # bitsandbytes' operators are in no list of autocast; layer norms return fp32
    seen = probe(make_8bit(256, 512), 1, 1000, 256, dtype=torch.float32, autocast=True)
    assert seen.kept == [2 * OUTPUT, 2 * INPUT]
    assert seen.forward_peak == 2 * INPUT + 256_000 + 4_000 + 2_048_000 + 1_024_000 + 2 * OUTPUT


def test_backward_unpacks_the_weight_in_the_inputs_dtype():
    seen = probe(make_8bit(256, 512), 1, 1000, 256)
    # CB in bf16: 512 * 256 * 2 = 262,144; in addition the input's gradient (before it, 512 fp32 scales); afterwards the
    # gradient of the probe's own neg and that of the input
    assert seen.backward_peak == max(262_144 + INPUT, 2 * INPUT)
    assert probe(make_8bit(256, 4096), 1, 1000, 256).backward_peak == 4096 * 256 * 2 + INPUT


def test_bias_is_added_in_place():
    assert probe(make_8bit(256, 512, bias=True), 1, 1000, 256).kept[:2] == [OUTPUT, INPUT]


def test_outlier_columns_are_kept_and_multiplied_separately():
    seen = probe(make_8bit(256, 512), 1, 1000, 256, outliers=8)
    # subA, the 8 columns of the input: 1000 * 8 * 2; their 8 int64 indices
    assert seen.kept == [OUTPUT, INPUT, 16_000, 64]
    # in addition to the plain peak: subA, the indices, and the 8 columns of the weight in bf16 (512 * 8 * 2)
    assert seen.forward_peak == INPUT + 256_000 + 4_000 + 2_048_000 + 1_024_000 + 1_024_000 + 16_000 + 64 + 8_192
    assert "8 outlier columns" in seen.notes.of("load_in_8bit")[0].text
    assert seen.notes.of("load_in_8bit")[0].kind == "assumed"


def test_no_layer_has_more_outliers_than_columns():
    assert probe(make_8bit(4, 512), 1, 1000, 4, outliers=100).kept[-2:] == [8_000, 32]  # subA is all of A: 1000 * 4 * 2


def test_cuda_refuses_four_dimensions():
    seen = probe(make_8bit(256, 512), 1, 1, 1000, 256, outliers=8)
    assert seen.kept == [OUTPUT, INPUT, 16_000, 64]
    refusals = [note for note in seen.notes.of("load_in_8bit") if note.kind == "refused"]
    assert ["refuse input of 4 dimensions" in note.text for note in refusals] == [True]


def test_quantising_rows_allocates_the_same_as_the_cuda_kernel():
    """Compares the rule with the kernel's own Python code, on real numbers with two outlier columns."""
    values = torch.zeros(10, 64, dtype=torch.float16)
    values[3, 5] = values[4, 40] = 7.0
    for_real = recording_on("cpu")
    kernel = _cuda_kernels()[0]["bitsandbytes::int8_vectorwise_quant"]
    with for_real:
        results = kernel(values, 6.0)
    assert results[2].tolist() == [5, 40]
    on_meta = gpu_recording(int8_outliers=2)
    context = on_meta.context
    on_device = values.to("meta")
    with on_meta:
        ruled = int8_vectorwise_quant(context, None, (on_device, 6.0), {})
    assert [tensor.shape for tensor in ruled] == [tensor.shape for tensor in results]
    assert [tensor.dtype for tensor in ruled] == [tensor.dtype for tensor in results]
    assert sizes_of(on_meta) == sizes_of(for_real)


def sizes_of(recording: RecordingMode) -> Counter[int]:
    """The sizes without single bytes: the 0 that overwrites outlier columns is a tensor on a device, but not on a
    CPU."""
    return Counter(each.nbytes for each in recording.recorder.make_ledger().allocations if each.nbytes > 1)
