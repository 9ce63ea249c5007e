"""reasoning-gym: problems from its generators, and its own judgement of an answer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megatron_r1.data.problems import Problem
from megatron_r1.errors import ConfigError

if TYPE_CHECKING:
    from reasoning_gym.dataset import ProceduralDataset

GRADER_PREFIX = "reasoning_gym:"
GENERATOR_SEED = 1
"""Fixed, so that problem ``chain_sum/17`` is the same one in every run. ``data.task_options.seed``
overrides it; `run.seed` only orders the draws."""

_TASKS_THAT_EVALUATE = {
    "binary_matrix",
    "composite",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
}
"""Tasks that hand the answer to Python's or sympy's evaluator, as of reasoning-gym 0.1.25."""
_HARMLESS_NAMES = {
    *("sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *("exp", "log", "ln", "sqrt", "pi", "Abs", "True", "False", "None"),
}


def generate_problems(task: str, options: Mapping[str, Any], num_problems: int) -> list[Problem]:
    """The first `num_problems` of a task, duplicates included. More start with the same ones.

    Raises:
        ConfigError: no such task, no such option, or a value that the task refuses.
    """
    check_task(task)
    _check_options(task, options)
    try:
        dataset = _create(task, {"seed": GENERATOR_SEED, **options, "size": num_problems})
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"data.task_options of {task}: {error}") from error
    return [_to_problem(task, options, index, dataset[index]) for index in range(num_problems)]


def check_task(task: str) -> None:
    """Raises ConfigError, with names alike, where reasoning-gym has no such task."""
    known = _registry()
    if task not in known:
        raise ConfigError(
            f"data.task = {task!r} is not a task of reasoning-gym.{_suggest(task, list(known))}"
        )


def warm_up() -> None:
    """Import reasoning-gym now: about a second."""
    _registry()


def score_answer(task: str, answer: str, grader_data: Mapping[str, Any]) -> tuple[float, str]:
    """The task's own score of an answer, from 0 to 1, and a note where there is one to make.

    Some tasks raise on an answer they cannot read. Where the same task accepts its own reference
    answer, that is the answer's fault and scores 0; otherwise the grader is broken and the error
    stays.
    """
    entry = from_json(grader_data["entry"])
    if task in _TASKS_THAT_EVALUATE and not is_harmless(answer):
        exact = answer == entry["answer"]
        return float(exact), "compared as text: never evaluated"
    dataset = _grader(task, json.dumps(grader_data.get("options", {}), sort_keys=True))
    try:
        return float(dataset.score_answer(answer, entry)), ""
    except Exception as error:
        dataset.score_answer(entry["answer"], entry)
        return 0.0, f"unreadable: {type(error).__name__}"


def is_harmless(answer: str) -> bool:
    """Whether an evaluator can do nothing with it but compute.

    It is ASCII, holds no string (sympy evaluates ``S("...")`` again), and each of its names is one
    letter or a known function.

    >>> is_harmless("(3 + x) * sqrt(2)"), is_harmless("exit()"), is_harmless("().__class__")
    (True, False, False)
    """
    names = re.findall(r"[A-Za-z_]\w*", answer)
    plain = answer.isascii() and not set(answer) & set("\"'\\")
    return plain and all(len(name) == 1 or name in _HARMLESS_NAMES for name in names)


def to_json(value: Any) -> Any:
    """A JSON-able form that keeps tuples, and keys that are no strings, for `from_json`."""
    if isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        return {"__tuple__": [to_json(item) for item in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"__items__": [[to_json(key), to_json(item)] for key, item in value.items()]}
    return value


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if "__tuple__" in value:
            return tuple(from_json(item) for item in value["__tuple__"])
        if "__items__" in value:
            return {from_json(key): from_json(item) for key, item in value["__items__"]}
        return {key: from_json(item) for key, item in value.items()}
    return value


def _to_problem(
    task: str, options: Mapping[str, Any], index: int, entry: Mapping[str, Any]
) -> Problem:
    return Problem(
        id=f"{task}/{index}",
        question=entry["question"],
        # Some tasks accept many answers and name none.
        answer="" if entry["answer"] is None else str(entry["answer"]),
        grader=GRADER_PREFIX + task,
        grader_data={"entry": to_json(dict(entry)), "options": dict(options)},
    )


def _check_options(task: str, options: Mapping[str, Any]) -> None:
    if "size" in options:
        raise ConfigError("data.task_options.size: set data.num_problems instead")
    _, config_class = _registry()[task]
    known = [option.name for option in dataclasses.fields(config_class) if option.name != "size"]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"data.task_options.{option} is not an option of {task}."
                f"{_suggest(option, known)} Options: {', '.join(known)}"
            )


def _suggest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=5, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _registry() -> dict[str, tuple[type, type]]:
    """Task -> (dataset class, class of its options)."""
    import reasoning_gym  # noqa: F401  registers every task
    from reasoning_gym.factory import DATASETS

    return DATASETS


def _create(task: str, options: Mapping[str, Any]) -> ProceduralDataset:
    from reasoning_gym.factory import create_dataset

    return create_dataset(task, **options)


@lru_cache(maxsize=32)
def _grader(task: str, options_json: str) -> ProceduralDataset:
    return _create(task, {"seed": GENERATOR_SEED, **json.loads(options_json), "size": 1})
