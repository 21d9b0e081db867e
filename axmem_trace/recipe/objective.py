"""The training objective: plain text, preferences, rewards or rollouts. Frozen, and without torch."""

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

    `model`: a second model on the GPU. `adapters_off`: the policy itself, its adapters switched off. `adapter_copy`: the
    policy with a frozen copy of its adapter. `precomputed`: the log-probabilities come with the batch.
    """

    kind: ReferenceKind = "none"
    dtype: Literal["policy", "float32"] = "policy"
    """The dtype of a second model: that of the policy, if axolotl loads it, or fp32, if TRL loads it."""
    resident_model: bool = False
    """A second model stays on the GPU. Also true with `precomputed`, if axolotl still passes one to TRL."""
    unused_copy: bool = False
    """axolotl loads a copy of the model that no trainer uses; it is freed after the trainer is made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollouts:
    """GRPO: completions are generated in training, by the policy itself or by an engine."""

    engine: Engine = "transformers"
    asynchronous: bool = False
    """axolotl's own trainer, which generates the next rows while it trains, and scores with half-precision logits."""
    engine_share: float = 0.0
    """Of the card, which a colocated engine may take (`gpu_memory_utilization`)."""
    engine_sleeps: bool = False
    steps_per_generation: int = 1
    """Micro-batches of one generation: this many times the micro batch is generated together."""
    iterations: int = 1
    """How often each generated batch is trained on."""
    num_generations: int = 8
    scores_old_policy: bool = False
    """The policy's own log-probabilities are computed again, in chunks of a micro-batch, before training on them."""
    corrects_sampling: bool = False
    """The engine also returns log-probabilities, from which a weight for each token is computed."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    loss_type: str = "dapo"
    entropy_trains: bool = False
    reward_models: tuple[BaseModel, ...] = ()
    """Classifiers on the GPU that score completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """EBFT: what is taken from the frozen network that scores completions."""

    layers: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Depths, as shares of the number of layers."""
    embedding: str = "last_token"
    """How a row's hidden states become one vector: `last_token`, `mean_pooling`, `completion_mean`, `concat`."""
    whitens: bool = False
    copy: bool = False
    """The network is a copy of the policy; otherwise the policy without its adapters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The objective, and what one GPU holds for it.

    Source: axolotl `core/builders/rl.py`, `core/trainers/{dpo,grpo,trl.py}`; TRL `trainer/*_trainer.py`.
    """

    method: Method = "supervised"
    trl: tuple[int, int] = (1, 14)
    """Major and minor version of TRL whose code runs."""
    reference: Reference = Reference()
    helpers: LossHelpers = "trl"
    """Whose code computes log-probabilities from logits: TRL's Triton kernel (from TRL 1.14 on), axolotl's own Triton
    kernels (axolotl 0.19), or TRL's plain PyTorch code (another trainer, or a card without Triton)."""
    chunked: bool = False
    """The Liger keys: log-probabilities are made from hidden states in tiles; there are no logits."""
    loss_types: tuple[str, ...] = ()
    loss_weights: tuple[float, ...] = ()
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5
    """SimPO's target margin."""
    length_bias: float | None = None
    """LD-DPO's `ld_alpha`; None: the plain sum over a completion."""
    weighted: bool = False
    """WPO: each pair is weighted by its probability, which takes two sums over the whole vocabulary."""
    likelihood: bool = False
    """A negative log-likelihood of the chosen text is part of the loss (ORPO; SimPO unless `cpo_alpha` is 0)."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of the longest row. In GRPO the two make up a row; elsewhere `batch.row_tokens` does."""
    centring: float = 0.0
    """Reward models: weight of the term that keeps rewards near zero (`center_rewards_coefficient`)."""
    rollouts: Rollouts | None = None
    features: Features | None = None
    empties_cache: bool = False
    """The allocator's cache is emptied after each micro-batch (axolotl until 0.20, in DPO)."""

    @property
    def cooling(self) -> Literal["in_place", "copy", "kernel"]:
        """How GRPO's logits are divided by the temperature: `div_` (TRL 1.9), a new tensor (1.13), or by the code that
        makes log-probabilities (1.14)."""
        if self.trl >= (1, 14) and self.helpers != "axolotl":
            return "kernel"
        return "copy" if self.trl == (1, 13) else "in_place"

    @property
    def is_preference(self) -> bool:
        """Trained by TRL's trainers: `rl` is set, or it is a reward model."""
        return self.method != "supervised"

    @property
    def has_pairs(self) -> bool:
        """Each sample is a chosen and a rejected row."""
        return self.method in ("dpo", "ipo", "simpo", "orpo", "reward")
