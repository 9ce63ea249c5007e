"""The problems of a suite, whatever it is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from megatron_r1.config.evaluation import SuiteConfig, SuiteFormat
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.data.problems import Problem, remove_duplicates, split_by_hash
from megatron_r1.data.records import line_id, read_records
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.evaluation.benchmarks.choices import gpqa, mmlu_pro
from megatron_r1.evaluation.benchmarks.fields import Adapter, Asked, UnsupportedError
from megatron_r1.evaluation.benchmarks.general import judged
from megatron_r1.evaluation.benchmarks.mathematics import aime, math_500
from megatron_r1.evaluation.benchmarks.programs import codeforces, humaneval, livecodebench

ADAPTERS: dict[SuiteFormat, Adapter] = {
    SuiteFormat.aime: aime,
    SuiteFormat.math_500: math_500,
    SuiteFormat.gpqa: gpqa,
    SuiteFormat.mmlu_pro: mmlu_pro,
    SuiteFormat.livecodebench: livecodebench,
    SuiteFormat.codeforces: codeforces,
    SuiteFormat.humaneval: humaneval,
    SuiteFormat.judged: judged,
}
_GENERATED_PROBLEMS = 100
_DRAWS_FOR_ONE = 20
"""A tenth of the problems are held out for ever; twice as many are drawn, for chance and
duplicates."""


@dataclass(frozen=True)
class Benchmark:
    """Problems in the order of their file, and why others are not among them."""

    problems: tuple[Problem, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


def read_benchmark(suite: SuiteConfig, *, seed: int) -> Benchmark:
    """The problems of a suite but those of ``heldout``, which the run's data has.

    Raises:
        DataError: a file that cannot be read, or is of another format: named with its line.
        ConfigError: no such task of reasoning-gym.
    """
    if suite.format is SuiteFormat.reasoning_gym:
        return Benchmark(tuple(_with_instruction(p, suite) for p in _gym_problems(suite)))
    if suite.format is SuiteFormat.jsonl:
        problems, skipped = read_jsonl(str(suite.path)), Counter[str]()
    else:
        problems, skipped = _read_file(suite, seed)
    chosen = problems[: suite.num_problems or None]
    if not chosen:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise DataError(f"{suite.file}: no problem can be used: {reasons}")
    return Benchmark(tuple(_with_instruction(p, suite) for p in chosen), dict(skipped))


def _read_file(suite: SuiteConfig, seed: int) -> tuple[list[Problem], Counter[str]]:
    adapter = ADAPTERS[suite.format]
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    for line in read_records(str(suite.file)):
        asked = Asked(line.record, line_id(line.path, line.number), suite, seed)
        try:
            problems.append(adapter(asked))
        except UnsupportedError as error:
            skipped[str(error)] += 1
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise line.fail(f"no {suite.format.value} record: {error!r}") from error
        except ValueError as error:
            raise line.fail(str(error)) from error
    return problems, skipped


def _gym_problems(suite: SuiteConfig) -> list[Problem]:
    """The same number of each task, out of those that no run ever trains on."""
    wanted = suite.num_problems or _GENERATED_PROBLEMS
    problems: list[Problem] = []
    for task, options in suite.tasks.items():
        drawn = generate_problems(task, options, wanted * _DRAWS_FOR_ONE)
        heldout = split_by_hash(remove_duplicates(drawn), corpus_frac=0.0).heldout_side
        if len(heldout) < wanted:
            raise ConfigError(
                f"reasoning-gym's {task} with options {dict(options)} has only {len(heldout)} "
                f"distinct problems to hold out of {wanted * _DRAWS_FOR_ONE}, and "
                f"num_problems = {wanted}. Lower it, or widen the options"
            )
        problems += heldout[:wanted]
    return problems


def _with_instruction(problem: Problem, suite: SuiteConfig) -> Problem:
    if not suite.instruction:
        return problem
    return replace(problem, question=f"{problem.question}\n\n{suite.instruction}")
