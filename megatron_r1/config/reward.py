"""`conf/reward/`: which rules score a rollout, and with which weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from megatron_r1.errors import ConfigError


class Isolation(Enum):
    """What shuts untrusted programs in; `auto` takes the first that works."""

    auto = "auto"
    bubblewrap = "bubblewrap"
    namespaces = "namespaces"
    """The kernel's, by a launcher of our own: where bubblewrap is not installed."""
    none = "none"
    """Limits alone. A program sees and writes whatever you may: for programs that you trust."""


@dataclass(kw_only=True)
class SandboxConfig:
    """How code is run against its tests. A prompt's own limits come first."""

    isolation: Isolation = Isolation.auto
    max_parallel: int = 4
    """Programs that one worker runs at once."""
    cpu_s: float = 4.0
    """For each test; all processes of a program together."""
    wall_s: float = 10.0
    memory_mb: int = 256
    max_processes: int = 16
    """Processes and threads of a program."""

    def __post_init__(self) -> None:
        for name in ("max_parallel", "cpu_s", "wall_s", "memory_mb", "max_processes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"reward.sandbox.{name} must be > 0, got {getattr(self, name)}")


@dataclass(kw_only=True)
class RepetitionConfig:
    """For the part ``repetition``."""

    ngram_tokens: int = 20
    """Shorter ones repeat in honest mathematics too."""

    def __post_init__(self) -> None:
        if self.ngram_tokens < 1:
            raise ConfigError(
                f"reward.repetition.ngram_tokens must be >= 1, got {self.ngram_tokens}"
            )


@dataclass(kw_only=True)
class OverlongConfig:
    """For the part ``overlong``. Defaults are DAPO's (arXiv:2503.14476 section 4.1)."""

    max_response_tokens: int = 20_480
    """Must equal ``rollout.max_response_tokens``."""
    buffer_tokens: int = 4_096
    """The last tokens before the limit, over which the penalty grows."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer_tokens <= self.max_response_tokens:
            raise ConfigError(
                f"reward.overlong.buffer_tokens = {self.buffer_tokens} must lie between 1 and "
                f"reward.overlong.max_response_tokens = {self.max_response_tokens}"
            )


@dataclass(kw_only=True)
class ReadabilityConfig:
    """For the part ``readable``, which is also what the cold start and rejection sampling keep. The
    filters are the paper's (arXiv:2501.12948v2 B.3.2 and B.3.3), every number is our choice."""

    min_summary_words: int = 1
    """Words and signs behind the thought; 1 lets a bare answer pass."""
    min_language: float = 0.9
    """Share of words in the question's language: names and terms may be another's."""
    ngram_words: int = 8
    max_repetition: float = 0.2
    """Share of n-grams that occurred before; loops come to more, honest restatements to less."""
    max_paragraph_words: int = 400
    """Of the thought, from one empty line to the next: about a page."""
    code_blocks: bool = False
    """Whether a thought may hold ``` blocks."""

    def __post_init__(self) -> None:
        for name in ("ngram_words", "max_paragraph_words"):
            if getattr(self, name) < 1:
                raise ConfigError(f"reward.readability.{name} must be >= 1")
        for name in ("min_language", "max_repetition"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"reward.readability.{name} must be in [0, 1], got {getattr(self, name)}"
                )
        if self.min_summary_words < 0:
            raise ConfigError("reward.readability.min_summary_words must be >= 0")


class Reads(Enum):
    """What of a response a reward model is shown."""

    summary = "summary"
    """What follows the thought; the paper's helpful model (arXiv:2501.12948v2 section 3.1)."""
    response = "response"
    """All of it, the thought included; the paper's safety model."""


@dataclass(kw_only=True)
class RewardConfig:
    """Total = sum over parts of weight x value. R1-Zero: accuracy and format, the same weight."""

    name: str = "r1_zero"
    weights: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    """Part -> weight. Parts are the rules registered in `rewards/`, and `models`. Equal: R1 section
    2.2."""
    mixes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Data set -> its own weights, for prompts whose ``dataset`` says so; others use `weights`."""
    schedules: dict[str, dict[int, float]] = field(default_factory=dict)
    """Part -> {step: factor}: from that step on its weight is multiplied by the factor; before the
    first step it counts 0."""
    models: dict[str, str] = field(default_factory=dict)
    """Part -> the reward model that gives it: a run of `stage=rm_helpful` or `rm_safety`, a
    checkpoint of one, or a Hugging Face sequence classifier with one label; of the policy's
    architecture, with the policy's tokenizer."""
    reads: dict[str, Reads] = field(default_factory=dict)
    """Part -> what of a response its model is shown; the same as in its training."""
    num_workers: int = 1
    """Processes that score while the policy decodes, for each leader."""
    timeout_s: float = 10.0
    """Limit for one rollout, beside what its tests may take in the sandbox. A rule that exceeds it
    scores 0, with the reason ``timeout``, and is counted in ``reward/timeout_frac``."""
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    repetition: RepetitionConfig = field(default_factory=RepetitionConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    readability: ReadabilityConfig = field(default_factory=ReadabilityConfig)

    def __post_init__(self) -> None:
        for name, weights in {"weights": self.weights, **self.mixes}.items():
            if not weights:
                where = "reward.weights" if name == "weights" else f"reward.mixes.{name}"
                raise ConfigError(
                    f"{where} is empty: name at least one rule, e.g. {{accuracy: 1.0}}"
                )
            if "length" in weights and "accuracy" not in weights:
                raise ConfigError(
                    "the part length needs accuracy beside it: a right answer is rewarded for "
                    "brevity. Add accuracy, with weight 0 if it shall not count"
                )
        if "length" in self.parts and "accuracy" in self.schedules:
            raise ConfigError(
                "the part length needs accuracy at every step, and reward.schedules.accuracy may "
                "turn that off. Leave one of the two out"
            )
        unused = [part for part in self.schedules if part not in self.parts]
        if unused:
            raise ConfigError(
                f"reward.schedules names parts without a weight: {', '.join(unused)}. Parts: "
                f"{', '.join(self.parts)}"
            )
        if self.models.keys() != self.reads.keys():
            raise ConfigError(
                f"reward.models and reward.reads must name the same parts: {sorted(self.models)} "
                f"and {sorted(self.reads)}. A model reads summary (rm_helpful) or response "
                "(rm_safety)"
            )
        unused = [part for part in self.models if part not in self.parts]
        if unused:
            raise ConfigError(
                f"reward.models names models without a weight: {', '.join(unused)}. Give each one "
                "in reward.weights or reward.mixes; with weight 0 it scores and is not trained on"
            )
        for part, schedule in self.schedules.items():
            if not schedule or min(schedule) < 0:
                raise ConfigError(
                    f"reward.schedules.{part} = {schedule} must map steps >= 0 to factors, e.g. "
                    "{1300: 1.0}"
                )
        if self.num_workers < 1:
            raise ConfigError(f"reward.num_workers must be >= 1, got {self.num_workers}")
        if self.timeout_s <= 0:
            raise ConfigError(f"reward.timeout_s must be > 0, got {self.timeout_s}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that has a weight, for some prompt at some step."""
        names = [*self.weights, *(part for mix in self.mixes.values() for part in mix)]
        return tuple(dict.fromkeys(names))

    def measuring(
        self, rules: Iterable[str], by_dataset: Mapping[str, Iterable[str]] | None = None
    ) -> RewardConfig:
        """Rules to measure with, each of weight 1, worked out as these settings say.

        Args:
            by_dataset: data set -> its own rules.
        """
        mixes = {name: dict.fromkeys(own, 1.0) for name, own in (by_dataset or {}).items()}
        weights = dict.fromkeys(rules, 1.0)
        return replace(self, weights=weights, mixes=mixes, schedules={}, models={}, reads={})

    def weights_at(self, dataset: str, step: int) -> dict[str, float]:
        """The weights of one data set's prompts after `step` updates; parts that are off are
        absent."""
        weights = self.mixes.get(dataset, self.weights)
        factors = {part: _factor_at(self.schedules.get(part), step) for part in weights}
        return {
            part: weight * factors[part] for part, weight in weights.items() if factors[part] != 0
        }


def _factor_at(schedule: dict[int, float] | None, step: int) -> float:
    if schedule is None:
        return 1.0
    begun = [start for start in schedule if start <= step]
    return schedule[max(begun)] if begun else 0.0
