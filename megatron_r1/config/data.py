"""`conf/data/`: where prompts come from, the template around them, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from megatron_r1.errors import ConfigError


class PromptSourceKind(Enum):
    """Where prompts come from."""

    reasoning_gym = "reasoning_gym"
    jsonl = "jsonl"


class BadLines(Enum):
    """What becomes of a line that is no record of what its file is to hold."""

    stop = "stop"
    set_aside = "set_aside"


@dataclass(kw_only=True)
class DataConfig:
    """Prompts of one run. Held-out problems never appear among the training problems."""

    name: str = "reasoning_gym"
    source: PromptSourceKind = PromptSourceKind.reasoning_gym
    task: str = "chain_sum"
    """Any reasoning-gym task by its name."""
    task_options: dict[str, Any] = field(default_factory=dict)
    """Options of that task's generator, e.g. ``{min_terms: 4, max_terms: 4}``."""
    num_problems: int = 20_000
    """Problems drawn from the generator before duplicates are removed."""
    heldout_problems: int = 256
    """Distinct problems set aside for evaluation."""
    corpus_frac: float = 0.0
    """Share of the remaining problems that only the synthetic corpus of `stage=tiny_base` may use;
    RL never draws them."""
    path: str | None = None
    """File of training prompts (source=jsonl), in JSONL, CSV or Parquet: one object a line, keys
    ``question`` and ``answer``, optional ``id`` and ``grader`` (math, exact or
    reasoning_gym:<task>). A question that an earlier line asks is dropped, counted and reported."""
    heldout_path: str | None = None
    """File of held-out prompts; None takes `heldout_problems` from `path`."""
    bad_lines: BadLines = BadLines.stop
    """What an unusable line does in a file of prompts or examples: it ends the run by name, or is
    left out, counted and reported."""
    leave_out: list[str] = field(default_factory=list)
    """Data sets whose prompts are not used: a stage that learns from rules alone leaves out those
    that only models can judge."""
    template: str = "r1_zero"
    """A template of `data/templates.py`."""
    tokenizer: str | None = None
    """Directory with a Hugging Face tokenizer. None: the one that lies beside `model.init_from`."""
    max_prompt_tokens: int = 1024
    """A longer prompt is dropped, counted and reported when the source is opened."""
    shuffle: bool = True
    """Draw each epoch in an order of its own, keyed by `run.seed`."""

    def __post_init__(self) -> None:
        if self.source is PromptSourceKind.jsonl and not self.path:
            raise ConfigError(
                "data.path is not set, and data.source=jsonl needs it: data.path=FILE"
            )
        if not 0 <= self.corpus_frac < 1:
            raise ConfigError(f"data.corpus_frac must be in [0, 1), got {self.corpus_frac}")
        if self.heldout_problems < 0:
            raise ConfigError(f"data.heldout_problems must be >= 0, got {self.heldout_problems}")
        for name in ("num_problems", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be >= 1, got {getattr(self, name)}")
