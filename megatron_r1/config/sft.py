"""Supervised stages of `conf/stage/`: SFT on a file, the cold start, rejection sampling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.stage import ExamplesConfig
from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class SftConfig(ExamplesConfig):
    """SFT on samples; `data/samples.py` says what a file holds. The loss is taken on responses
    alone, and rows are packed by best fit into micro-batches of
    `parallel.max_tokens_per_microbatch`, where none sees another.

    Defaults are those of DeepSeek-R1's SFT (arXiv:2501.12948v2 B.4.2); the learning rate, cosine
    from 5e-5 to 5e-6, is that of conf/optimizer/sft.yaml.
    """

    starts_from: ClassVar[str] = "a model to fine-tune"

    name: str = "sft"
    examples_per_step: int = 128
    """The paper's batch. It does not say of what; ours counts samples, so that a step does not
    depend on how they are packed."""
    num_epochs: int = 2
    """The paper's are 2 to 3 (v1: two)."""
    max_tokens: int = 32_768
    evaluate_every_steps: int = 50
    """Our choice. The loss on held-out samples is measured after an update that is a multiple of
    this, and at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluate_every_steps < 1:
            raise ConfigError(f"evaluate_every_steps must be >= 1, got {self.evaluate_every_steps}")


@dataclass(kw_only=True)
class CollectConfig:
    """What a stage samples from an earlier model, to learn from."""

    source: str = ""
    """The model that samples: a run, a checkpoint or a Hugging Face model, of `model`'s shape."""
    num_prompts: int = 0
    """Of `data`, in the order of its first epoch; 0: all of them."""
    samples_per_prompt: int = 16
    keep_per_prompt: int = 0
    """Of those that pass every filter, the first of so many; 0: all."""
    temperature: float = 1.0
    top_p: float = 1.0
    """Our choice where the paper states none: the whole distribution."""
    prompts_per_part: int = 256
    """Our choice. What is sampled is written after so many prompts; a run that was stopped goes on
    behind the last part."""
    judged_datasets: list[str] = field(default_factory=list)
    """Data sets whose answers no rule can compare: `judge` does, with the prompt's answer as the
    reference (arXiv:2501.12948v2 B.3.3)."""

    def __post_init__(self) -> None:
        for name in ("samples_per_prompt", "prompts_per_part"):
            if getattr(self, name) < 1:
                raise ConfigError(f"collect.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("num_prompts", "keep_per_prompt"):
            if getattr(self, name) < 0:
                raise ConfigError(f"collect.{name} must be >= 0, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ConfigError(f"collect.temperature must be > 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"collect.top_p must be in (0, 1], got {self.top_p}")


@dataclass(kw_only=True)
class TeacherConfig(JudgeConfig):
    """A model behind an OpenAI-compatible endpoint that writes, as `conf/judge/` has one that
    judges."""

    enabled: bool = False
    """Without it the model's own samples are learned from as they are."""


@dataclass(kw_only=True)
class CollectingConfig(SftConfig):
    """What both stages have that sample first and then train on what they keep."""

    samples: ClassVar[bool] = True

    name: str = "collecting"
    collect: CollectConfig = field(default_factory=CollectConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    heldout_frac: float = 0.01
    """Our choice: share of the prompts whose kept samples are held out, by a hash of the
    prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.heldout_frac < 1:
            raise ConfigError(f"heldout_frac must be in [0, 1), got {self.heldout_frac}")
        for name in ("examples", "heldout"):
            if getattr(self, name):
                raise ConfigError(
                    f"{name} = {getattr(self, name)} has no meaning for stage.name = {self.name}, "
                    "which makes its own. Leave it out, or use stage=sft"
                )


@dataclass(kw_only=True)
class R1Stage1Config(CollectingConfig):
    """Cold start (arXiv:2501.12948v2 3.1 and B.3.2): thousands of long chains of thought from
    R1-Zero at temperature 1.0, right and readable, rewritten by a teacher; SFT of the base."""

    name: str = "r1_stage1"
    collect: CollectConfig = field(
        default_factory=lambda: CollectConfig(
            num_prompts=8_192, samples_per_prompt=4, keep_per_prompt=1
        )
    )
    """Temperature 1.0 is the paper's. Prompts and samples are our choice: with one kept of each
    prompt they end at the paper's "thousands", and most prompts that R1-Zero can solve are solved
    in four samples."""
    few_shot: str | None = None
    """JSONL file of a few samples with long chains of thought. The teacher sees them before each
    prompt that has no sample of its own, and writes one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.few_shot and not self.teacher.enabled:
            raise ConfigError(
                f"few_shot = {self.few_shot} is shown to a teacher, and stage.teacher.enabled = "
                "false. Set it to true, or leave few_shot out"
            )


@dataclass(kw_only=True)
class R1Stage3Config(CollectingConfig):
    """Rejection sampling and SFT of the base, again (arXiv:2501.12948v2 B.3.3): about 600k samples
    of reasoning by stage 2's model, and 200k others."""

    name: str = "r1_stage3"
    collect: CollectConfig = field(default_factory=CollectConfig)
    """16 samples of each prompt, at temperature 1.0, are our choice: the paper keeps 626,933 of
    some 80k prompts, 7.8 of each, which is half of 16."""
    general: str | None = None
    """JSONL file of samples that are not reasoning: writing, question answering, self-description,
    translation. With a teacher, those that have no chain of thought get one, except simple ones."""
    reasoning_per_general: float = 3.0
    """Samples of reasoning for each other one: 600k to 200k. What one side has too many is left
    out; 0 keeps all."""
    simple_words: int = 3
    """Our choice: a question of at most so many words ("hello") is answered without a thought."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("reasoning_per_general", "simple_words"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
