"""What is dropped from a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_r1.config.data import BadLines
from megatron_r1.config.stage import StageConfig
from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class NearDuplicateConfig:
    """Of texts as alike as `threshold`, the first is kept."""

    threshold: float = 0.8
    """Jaccard similarity of their shingles, estimated; 1 turns the step off. Our choice: most
    rewordings of a long text lie above it, and two problems of one short template below."""
    shingle_words: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"near.threshold must be in (0, 1], got {self.threshold}")
        if self.shingle_words < 1:
            raise ConfigError(f"near.shingle_words must be >= 1, got {self.shingle_words}")


@dataclass(kw_only=True)
class DecontaminationConfig:
    """What shares words with an evaluation set is dropped."""

    files: list[str] = field(default_factory=list)
    """Evaluation sets, in any format of `data/records.py`; every text in them counts."""
    ngram_words: int = 10
    """DeepSeek-R1 appendix D.1."""
    signs: bool = False
    """Each sign is a word too: in ``3 + 4 - 2`` they are the problem, and without them it is
    ``3 - 4 + 2`` again. Off, typesetting hides nothing."""
    max_items: int = 0
    """An n-gram that stands in more evaluation records than this is a template's and does not
    count; 0: all count, as in the paper. Without it, synthetic tasks rule out themselves."""

    def __post_init__(self) -> None:
        if self.ngram_words < 1:
            raise ConfigError(f"decontamination.ngram_words must be >= 1, got {self.ngram_words}")
        if self.max_items < 0:
            raise ConfigError(f"decontamination.max_items must be >= 0, got {self.max_items}")


@dataclass(kw_only=True)
class DifficultyConfig:
    """Which pass rates are kept, both bounds included."""

    rollouts: list[str] = field(default_factory=list)
    """``pass_counts/step_*.jsonl`` of runs that sampled these prompts; none turns the step off."""
    min_pass_rate: float = 0.05
    max_pass_rate: float = 0.95
    """With the defaults, 1 to 15 of 16: a group of equal rewards has no advantage (R1 Eq. 3)."""
    min_samples: int = 1
    """A prompt that was sampled less often is dropped: its rate is not known."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ConfigError(
                "difficulty: 0 <= min_pass_rate <= max_pass_rate <= 1 must hold, got "
                f"{self.min_pass_rate} and {self.max_pass_rate}"
            )
        if self.min_samples < 1:
            raise ConfigError(f"difficulty.min_samples must be >= 1, got {self.min_samples}")


@dataclass(kw_only=True)
class CurationConfig:
    """The steps, in the order in which `data/curation/pipeline.py` takes them."""

    bad_lines: BadLines = BadLines.stop
    """An unusable line ends it by name, or goes with the reason into ``.rejected.jsonl``."""
    difficulty: DifficultyConfig = field(default_factory=DifficultyConfig)
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    near: NearDuplicateConfig = field(default_factory=NearDuplicateConfig)


@dataclass(kw_only=True)
class CurateStageConfig(StageConfig):
    """What tools/curate.py does, as a stage: each set by itself, into the run directory."""

    name: str = "curate"
    sets: dict[str, str] = field(default_factory=dict)
    """Name -> file; what is kept of it is ``NAME.jsonl``."""
    against: dict[str, str] = field(default_factory=dict)
    """Name -> evaluation file to keep out of every set, beside
    `curation.decontamination.files`."""
    curation: CurationConfig = field(default_factory=CurationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.sets:
            if not name.isidentifier():
                raise ConfigError(
                    f"sets: {name!r} is no name for a file: letters, digits and _ alone"
                )
