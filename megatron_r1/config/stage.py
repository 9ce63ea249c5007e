"""`conf/stage/`: what a run does. R1's own stages are in `r1.py` and `sft.py`, pipelines in
`pipeline.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.config.optimizer import DecayStyle, OptimizerConfig
from megatron_r1.errors import ConfigError


def _check_positive(config: object, name: str) -> None:
    value = getattr(config, name)
    if value < 1:
        raise ConfigError(f"{name} must be >= 1, got {value}")


@dataclass(kw_only=True)
class EvalConfig:
    """pass@1 on held-out problems, as the mean over samples (R1 supplement D.1)."""

    num_problems: int = 256
    samples_per_problem: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 7919
    """Keys the sampler; apart from `run.seed`, so that all runs answer under the same draws."""

    def __post_init__(self) -> None:
        for name in ("num_problems", "samples_per_problem"):
            _check_positive(self, name)
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(kw_only=True)
class StageConfig:
    """What every stage has."""

    starts_from: ClassVar[str] = ""
    """What `model.init_from` has to be; empty: the stage makes its own model, or trains none."""
    samples: ClassVar[bool] = False
    """Whether a model writes responses, by its own ranks or on servers."""

    name: str
    checkpoint_every_steps: int = 100
    """Saved after an update (RL: a phase) that reaches a multiple of this, and at the end."""
    keep_checkpoints: int = 2
    background_checkpoints: bool = False
    """Write weights and optimizer state while training goes on, from a copy in host memory. A
    failure is reported at the next step."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "keep_checkpoints"):
            _check_positive(self, name)


@dataclass(kw_only=True)
class R1ZeroConfig(StageConfig):
    """DeepSeek-R1-Zero: GRPO on rule rewards. Defaults are the paper's (Nature 2025, Methods)."""

    starts_from: ClassVar[str] = "a model"
    samples: ClassVar[bool] = True

    name: str = "r1_zero"
    num_steps: int = 10_400
    """Policy updates."""
    prompts_per_step: int = 32
    rollouts_per_prompt: int = 16
    steps_per_phase: int = 16
    """Updates made from one rollout phase: 16 x 32 x 16 = 8,192 rollouts, split at random."""
    reference_refresh_steps: int = 400
    """The reference becomes a copy of the policy after this many updates; 0 never refreshes it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_steps", "prompts_per_step", "rollouts_per_prompt", "steps_per_phase"):
            _check_positive(self, name)
        if self.rollouts_per_prompt < 2:
            raise ConfigError(
                "rollouts_per_prompt must be >= 2: an advantage compares rollouts of one "
                f"prompt with each other, got {self.rollouts_per_prompt}"
            )

    def steps_in_phase(self, step: int) -> int:
        """Updates of the phase that begins after `step`; the last one may be shorter."""
        return min(self.steps_per_phase, self.num_steps - step)


@dataclass(kw_only=True)
class TinyBaseConfig(StageConfig):
    """A tiny base model, trained from scratch on the noisy synthetic corpus of `data/corpus.py`."""

    name: str = "tiny_base"
    documents: str | None = None
    """JSONL file of `data/samples.py` to learn from in the place of that corpus, such as the tiny
    world's. `num_documents` and `corpus` have no meaning then."""
    split_words: bool = False
    """The tokenizer's: no token spans two words."""
    num_steps: int = 700
    sequences_per_step: int = 64
    num_documents: int = 20_000
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4e-3, min_lr=4e-4, warmup_steps=20, decay=DecayStyle.cosine, beta2=0.99
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_steps", "sequences_per_step", "num_documents"):
            _check_positive(self, name)


@dataclass(kw_only=True)
class TinyR1ZeroConfig(StageConfig):
    """The quickstart: `tiny_base`, its evaluation, `r1_zero` from it, and the evaluation again."""

    samples: ClassVar[bool] = True

    name: str = "tiny_r1_zero"
    base: TinyBaseConfig = field(default_factory=TinyBaseConfig)
    zero: R1ZeroConfig = field(default_factory=R1ZeroConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)


@dataclass(kw_only=True)
class ExamplesConfig(StageConfig):
    """What stages have that go through a file of examples, in an order of each epoch's own."""

    examples: str = ""
    """JSONL file."""
    heldout: str | None = None
    """A file of the same kind that is not trained on."""
    examples_per_step: int = 64
    num_epochs: int = 1
    max_tokens: int = 8_192
    """Prompt, response and end of sequence; a longer example is dropped, counted and reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("examples_per_step", "num_epochs", "max_tokens"):
            _check_positive(self, name)

    def num_steps(self, num_examples: int) -> int:
        """Updates in all epochs; the last one may begin another. 258 for the 66,000 pairs of the
        paper's helpful reward model."""
        return math.ceil(self.num_epochs * num_examples / self.examples_per_step)


@dataclass(kw_only=True)
class DpoStageConfig(ExamplesConfig):
    """DPO on preference pairs; `data/preferences.py` says what a file holds. The run ends with how
    many held-out pairs the policy orders right. 64 a step: arXiv:2305.18290 appendix B."""

    starts_from: ClassVar[str] = "a policy, which is its reference too"

    name: str = "dpo"


@dataclass(kw_only=True)
class RewardModelConfig(ExamplesConfig):
    """What both reward models have. Defaults are the paper's (arXiv:2501.12948v2 section 3.1): one
    epoch, steps of 256, 8,192 tokens; the learning rate is that of conf/optimizer/reward_model."""

    starts_from: ClassVar[str] = "a language model, whose body is kept and gets a new head"

    name: str = "reward_model"
    examples_per_step: int = 256
    evaluate_every_steps: int = 50
    """Held-out examples are scored after an update that is a multiple of this, and at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "evaluate_every_steps")


@dataclass(kw_only=True)
class RmHelpfulConfig(RewardModelConfig):
    """The helpful reward model, on preference pairs; `data/preferences.py` says what a file is."""

    name: str = "rm_helpful"
    centre_weight: float = 0.0
    """Of (chosen + rejected)^2 in the loss, which keeps scores around 0."""
    margin_weight: float = 0.0
    """Times a pair's ``margin`` is what its scores are asked to differ by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("centre_weight", "margin_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")


@dataclass(kw_only=True)
class RmSafetyConfig(RewardModelConfig):
    """The safety reward model, on responses labelled safe or unsafe; `data/safety_labels.py` says
    what a file holds."""

    name: str = "rm_safety"


@dataclass(kw_only=True)
class DistillConfig(ExamplesConfig):
    """A teacher's responses; `data/samples.py` says what a file holds. Defaults are those of
    DeepSeek-R1's distilled models (arXiv:2501.12948v2 B.4.3), which took 2 to 3 epochs."""

    starts_from: ClassVar[str] = "a student"

    name: str = "distill"
    teacher: str | None = None
    """A run, a checkpoint or a Hugging Face model of the same vocabulary, for the objective on
    logits. It runs in the student's layout, and stays on the device beside it."""
    num_epochs: int = 2
    max_tokens: int = 32_768
    evaluate_every_steps: int = 50
    """Our choice, as for SFT. The loss on held-out samples is measured after an update that is a
    multiple of this, and at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "evaluate_every_steps")
