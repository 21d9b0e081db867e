"""The training objective: plain text, preferences, rewards or rollouts. Frozen types, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axmem_trace.recipe.model import BaseModel

Method = Literal["supervised", "dpo", "ipo", "simpo", "orpo", "kto", "grpo", "gdpo", "ebft", "reward", "process_reward"]
LossHelpers = Literal["trl", "axolotl", "torch"]
Engine = Literal["transformers", "vllm_server", "vllm_colocate"]
ReferenceKind = Literal["none", "model", "adapters_off", "adapter_copy", "precomputed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The frozen model whose log-probabilities the policy is compared with.

    `model`: a second model on the GPU. `adapters_off`: the policy itself, with its adapters switched off.
    `adapter_copy`: the policy with a frozen copy of its adapter. `precomputed`: the log-probabilities are part of the batch.
    """

    kind: ReferenceKind = "none"
    dtype: Literal["policy", "float32"] = "policy"
    """The dtype of a second model: that of the policy, if axolotl loads it, or fp32, if TRL loads it."""
    resident_model: bool = False
    """A second model stays on the GPU. Also true with `precomputed`, if axolotl still passes one to TRL."""
    unused_copy: bool = False
    """axolotl loads a copy of the model that no trainer uses. It is freed after the trainer is created."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """GRPO: completions are generated in training, by the policy itself or by an engine."""

    engine: Engine = "transformers"
    asynchronous: bool = False
    """axolotl's own trainer. It generates the next rows while it trains, and computes scores with half-precision logits."""
    engine_share: float = 0.0
    """The share of the card that a colocated engine may use (`gpu_memory_utilization`)."""
    engine_sleeps: bool = False
    steps_per_generation: int = 1
    """The number of micro-batches whose rows are generated together."""
    iterations: int = 1
    """How many times the trainer uses each generated batch."""
    num_generations: int = 8
    scores_old_policy: bool = False
    """The policy's own log-probabilities of the generated rows are computed again before training, one micro-batch at a
    time."""
    corrects_sampling: bool = False
    """The engine also returns log-probabilities; the trainer computes a weight for each token from them."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    loss_type: str = "dapo"
    entropy_trains: bool = False
    reward_models: tuple[BaseModel, ...] = ()
    """Classifiers on the GPU that score completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """EBFT: the features that are computed with a frozen network to score completions."""

    layers: tuple[float, ...] = (0.25, 0.5, 0.75)
    """The layers whose hidden states are used, as shares of the number of layers."""
    embedding: str = "last_token"
    """How a row's hidden states become one vector: `last_token`, `mean_pooling`, `completion_mean`, `concat`."""
    whitens: bool = False
    copy: bool = False
    """The network is a copy of the policy; otherwise it is the policy without its adapters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The objective, and the additional models and data of one GPU.

    Source: axolotl `core/builders/rl.py`, `core/trainers/{dpo,grpo,trl.py}`; TRL `trainer/*_trainer.py`.
    """

    method: Method = "supervised"
    trl: tuple[int, int] = (1, 14)
    """Major and minor version of TRL."""
    reference: Reference = Reference()
    helpers: LossHelpers = "trl"
    """Whose code computes log-probabilities from logits: TRL's Triton kernel (from TRL 1.14 on), axolotl's own Triton
    kernels (axolotl 0.19), or TRL's plain PyTorch code (another trainer, or a card without Triton)."""
    chunked: bool = False
    """The Liger keys: log-probabilities are computed from hidden states in tiles, without logits."""
    loss_types: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    """SimPO's target margin."""
    length_bias: float | None = None
    """LD-DPO's `ld_alpha`; None: the plain sum over a completion."""
    weighted: bool = False
    """WPO: each pair is weighted by its probability, which needs two sums over the whole vocabulary."""
    likelihood: bool = False
    """A negative log-likelihood of the chosen text is part of the loss (ORPO; SimPO unless `cpo_alpha` is 0)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens of the longest completion. In GRPO a row has `prompt_tokens` plus these; otherwise `batch.row_tokens`."""
    centring: float = 0.0
    """Reward models: the weight of the loss term that keeps rewards near zero (`center_rewards_coefficient`)."""
    rollouts: Rollouts | None = None
    features: Features | None = None
    empties_cache: bool = False
    """The allocator's cache is emptied after each micro-batch (axolotl until 0.20, in DPO)."""

    @property
    def cooling(self) -> Literal["in_place", "copy", "kernel"]:
        """How GRPO divides logits by the temperature: in place by `div_` (TRL 1.9), into a new tensor (1.13), or in the
        kernel that computes log-probabilities (1.14)."""
        if self.trl >= (1, 14) and self.helpers != "axolotl":
            return "kernel"
        return "copy" if self.trl == (1, 13) else "in_place"

    @property
    def is_preference(self) -> bool:
        """True if a trainer of TRL is used: `rl` is set, or a reward model is trained."""
        return self.method != "supervised"

    @property
    def has_pairs(self) -> bool:
        """True if each sample has two rows: chosen and rejected."""
        return self.method in ("dpo", "ipo", "simpo", "orpo", "reward")
