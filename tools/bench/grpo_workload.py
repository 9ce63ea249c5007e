"""What both sides of `grpo_vs_trl.py` work on, and how they take turns."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_r1.types import Prompt, Rollout

NO_TOKEN = 1 << 20
"""Beyond any vocabulary: with this end of sequence every response gets its full length."""


@dataclass(frozen=True)
class Workload:
    """One GRPO step: rollouts, reference log-probabilities, one update. Float32, temperature 1."""

    model: str
    """A file of conf/model."""
    num_prompts: int
    samples_per_prompt: int
    response_tokens: int
    rows_per_microbatch: int
    """Both sides run as many rows through the model at once, forwards and backwards."""
    kl_beta: float
    """Above 0, both compute the reference's log-probabilities."""
    learning_rate: float = 1e-6
    seed: int = 1

    @property
    def num_rollouts(self) -> int:
        return self.num_prompts * self.samples_per_prompt

    @property
    def num_tokens(self) -> int:
        """Generated tokens of a step."""
        return self.num_rollouts * self.response_tokens

    def save(self, directory: Path) -> None:
        (directory / "workload.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def load(directory: Path) -> Workload:
        return Workload(**json.loads((directory / "workload.json").read_text()))


def even_tokens(token_ids: Sequence[int]) -> float:
    """The share of even token ids: a reward that differs from rollout to rollout."""
    return sum(token % 2 == 0 for token in token_ids) / len(token_ids)


def even_tokens_rule(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """The same as a rule of `megatron_r1.rewards`."""
    return even_tokens(rollout.token_ids), ""


@dataclass
class Turns:
    """A side's end of its conversation with the driver.

    The driver writes how many steps the next turn has; the side makes them, answers with a line of
    JSON, one object a step (generated tokens, and the seconds of the step and of its parts), and
    sleeps until the next turn. What libraries print goes to standard error.
    """

    waited_s: float = 0.0
    """In the last call of `between_steps`."""
    _steps: list[dict[str, float]] = field(default_factory=list)
    _left: int = 0
    _started_s: float | None = None
    """When the present step began."""

    def __post_init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def between_steps(self, parts: Callable[[], dict[str, float]]) -> None:
        """Call where one step ends and the next begins; `parts` describes the one that ended."""
        ended_s = time.perf_counter()
        if self._started_s is not None:
            self._steps.append({"whole step": ended_s - self._started_s, **parts()})
        if self._left == 0:
            self._wait()
        self._left -= 1
        self._started_s = time.perf_counter()
        self.waited_s = self._started_s - ended_s

    def _wait(self) -> None:
        print(json.dumps(self._steps), file=self._answers, flush=True)
        self._steps = []
        order = sys.stdin.readline()
        if not order:  # the driver has seen enough
            raise SystemExit(0)
        self._left = int(order)
