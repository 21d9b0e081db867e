"""Words of the report that are not fields of its schema: verdicts, kinds of notes, phases, and uses of memory."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc

from axmem_trace.notes import Note, RefusalNote
from axmem_trace.report import holders

VERDICTS: Mapping[str, str] = {
    "fits with room": "The run fits, and at least a tenth of the card stays free.",
    "fits": "The run fits, and less than a tenth of the card stays free, but more than the error of such predictions.",
    "tight": "The figures fit, but less memory stays free than the error of predictions for such runs.",
    "does not fit": "The card must have more memory than it has, or an allocation fails although cached blocks were freed.",
    "cannot say": "Something that is not in the figures could change the answer; the line below the verdict says what, and "
    "whether the run needs more or less.",
}
PHASES: Mapping[str, str] = {
    "load": "The model is read and put on the card; axolotl resets the peaks after it.",
    "generate": "The model writes the answers that it is then trained on.",
    "score": "Log-probabilities or rewards of texts are calculated before the step.",
    "forward": "From a batch to the loss.",
    "backward": "From the loss to the gradients; checkpointed layers run a second time.",
    "optimizer": "Gradients are clipped and weights updated; in the first step the optimizer's states are allocated.",
    "eval": "Evaluation, before the first step too unless `eval_on_start` is false.",
    "save": "The model is saved: what several GPUs have parts of is gathered, and collected on the host.",
}
HOLDERS: Mapping[str, str] = {
    holders.LOGITS: "Scores for every token and every entry of the vocabulary, their fp32 copies, and their gradient.",
    holders.LAYER_INPUTS: "What gradient checkpointing keeps of each layer.",
    holders.IN_LAYERS: "What layers keep for backward; gradient checkpointing does not keep it.",
    holders.LAYER_WEIGHTS: "Weights of the layers that repeat, as stored: packed if they are quantised.",
    holders.OPTIMIZER_STATES: "What the optimizer keeps for each trained weight, as AdamW's two averages.",
    "adapter weights": "Weights of LoRA and its like.",
    "reference model's weights": "A second model that preference training compares with; it does not train.",
    "embedding weights": "The table that turns tokens into vectors.",
    "output layer's weights": "The layer that turns vectors into scores for the vocabulary.",
    "other weights": "Weights outside the repeated layers, the embedding and the output layer.",
    "other activations": "What is kept for backward outside the repeated layers and the loss.",
    "one layer's activations, recomputed": "In backward, gradient checkpointing runs one layer's forward again.",
    "dequantised weights": "A quantised weight as 16 bits, for the one product that needs it.",
    "cuBLAS workspace": "Memory that NVIDIA's library for matrix products allocates.",
    "gathered parameters": "Whole parameters of a layer, put together from all GPUs for a while.",
    "gradients being reduced": "Gradients on their way between GPUs.",
    "DDP's buckets of gradients": "Buffers in which DistributedDataParallel reduces gradients.",
    "copies made while loading": "Temporary tensors while the model is read.",
    "optimizer's temporaries": "Temporary tensors of one optimizer step.",
    "temporaries of forward": "Tensors of forward that are freed before backward.",
    "temporaries of backward": "Tensors of backward that are freed in it.",
    "temporaries of evaluation": "Temporary tensors while the model is evaluated.",
}
SCREEN_WORDS: Mapping[str, str] = {
    "states": "Adapters, gradients and the optimizer's states together: what exists only because something trains.",
    "cached": "Memory that PyTorch's allocator has taken from the card and that no tensor uses now.",
    "free": "What is left of the card.",
    "allocated": "Bytes of tensors, in blocks of 512 bytes. axolotl logs the most of it as `memory/max_allocated`.",
    "active": "Allocated, and blocks that were freed but wait for another stream of the GPU.",
    "reserved": "What PyTorch's allocator has taken from the card: allocated blocks, and cached ones.",
    "max_active": "The most active bytes since the last line of axolotl's log.",
    "max_allocated": "The most allocated bytes since the last line of axolotl's log.",
    "device_reserved": "The most reserved bytes since the last line of axolotl's log.",
    "nvidia-smi": "Reserved, the CUDA context, and NCCL's buffers: what that program shows. It must fit the card.",
    "CUDA context": "What the driver and loaded kernels take of the card before the first tensor; assumed.",
    "expandable segments": "A mode of PyTorch's allocator in which segments can grow: less memory is cached in pieces.",
    "logits": "The model's scores for every token and every entry of the vocabulary.",
    "nf4": "Weights in 4 bits, as bitsandbytes stores them; two are in one byte.",
    "double quantisation": "The scales of 4-bit weights are stored in 8 bits too.",
    "micro batch": "The rows that are on the card at the same time (`micro_batch_size`).",
    "margin": "Memory of the card that must stay free (`--margin`).",
    "gentlest set": "Of the sets of changes with which the run fits: the lowest price, then the fewest changes.",
}


def kinds_of_notes() -> dict[str, str]:
    """Each kind with its meaning, from the docstring of `Note`."""
    found = {}
    for line in (getdoc(Note) or "").splitlines():
        if line.startswith("- `"):
            kind, _, meaning = line.removeprefix("- `").partition("`: ")
            found[kind] = meaning
    refused = (getdoc(RefusalNote) or "").partition("\n\n")[0]
    return found | {"refused": " ".join(refused.split())}
