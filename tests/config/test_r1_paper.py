"""What DeepSeek-R1's paper says of its stages, against the configuration that runs them.

`r1_paper.tsv` is the paper's table: settings with their values, each with its section, or marked
`ours` with the reason where the paper is silent. `v2` is arXiv:2501.12948v2, `v1` the first.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from megatron_r1.config.load import load_config, to_yaml
from megatron_r1.config.paths import flatten

TABLE = Path(__file__).with_name("r1_paper.tsv")
FILES = ["stage.examples=samples.jsonl"]
PROMPTS = ["data=jsonl", "data.path=prompts.jsonl"]
BASES = ("qwen_1.5b", "qwen_7b", "qwen_14b", "qwen_32b", "llama_8b", "llama_70b")
RUNS = {
    "zero": ["stage=r1_zero", *PROMPTS],
    "stage1": ["stage=r1_stage1", *PROMPTS],
    "stage2": ["stage=r1_stage2", *PROMPTS],
    "stage3": ["stage=r1_stage3", *PROMPTS],
    "stage4": ["stage=r1_stage4", *PROMPTS, "reward.models.helpful=a", "reward.models.safety=b"],
    "sft": ["stage=sft", *FILES],
    "helpful": ["stage=rm_helpful"],
    "safety": ["stage=rm_safety"],
    "distill": ["stage=distill", *FILES],
    "r1_evaluation": ["evaluation=r1"],
    **{f"distill_{base}": [f"experiment=distill_{base}", *FILES] for base in BASES},
}
MACHINERY = (
    *(".checkpoint_every_steps", ".keep_checkpoints", "_s", ".max_retries", ".max_parallel"),
    *(
        "rollout.max_batch",
        "rollout.max_mismatch",
        "rollout.steps_ahead",
        ".problems_per_part",
        ".seed",
    ),
)
"""Ends of settings that a machine asks for, and that change nothing of what is learned."""
NO_CHOICE = (
    *(".name", ".source", ".examples", ".general", ".base_url", ".model", ".api_key_variable"),
    ".background_checkpoints",
)
"""Ends of settings that are texts or switches, and name a file or a machine or are one's."""
_PROMPTS = ("data.max_prompt_tokens", "data.template")
_RL = ("stage", "optimizer", "algo", "rollout", "reward.weights", "reward.mixes", *_PROMPTS)
_LEARN = ("stage", "optimizer", "parallel.max_tokens_per_microbatch")
_COLLECT = (*_LEARN, "reward.readability", "rollout.max_response_tokens", *_PROMPTS)
READ_BY = {
    **dict.fromkeys(("zero", "stage2", "stage4"), _RL),
    "stage1": _COLLECT,
    "stage3": (*_COLLECT, "judge"),
    **dict.fromkeys(("sft", "distill", "helpful", "safety"), _LEARN),
    "r1_evaluation": ("evaluation", "rollout.max_response_tokens", "reward.readability"),
}
"""Run -> the parts of its configuration that it reads."""


def rows() -> list[dict[str, str]]:
    with TABLE.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@cache
def settings_of(run: str) -> dict[str, Any]:
    config = load_config(RUNS[run])
    return OmegaConf.to_container(OmegaConf.create(to_yaml(config)))


def at(tree: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def as_written(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {value[key]}" for key in sorted(value))
    return str(value)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['runs']} {row['setting']}")
def test_the_configuration_says_what_the_paper_says(row):
    assert row["mark"] in ("paper", "ours") and row["source or reason"].strip()
    for run in row["runs"].split():
        found, written = at(settings_of(run), row["setting"]), row["value"]
        if isinstance(found, int | float):
            assert found == float(written), run
        else:
            assert as_written(found) == written, run


def decides(setting: str, value: Any) -> bool:
    """Whether a setting says what is learned: a number, a choice by name, or a switch."""
    if isinstance(value, str | bool):
        return not setting.endswith(NO_CHOICE)
    return isinstance(value, int | float) and not setting.endswith(MACHINERY)


@pytest.mark.parametrize("run", READ_BY)
def test_everything_that_decides_what_a_run_learns_has_its_row(run):
    """Nothing comes into conf/ or a schema behind it without a source or a reason. Of an
    evaluation, which learns nothing, its numbers."""
    settings = settings_of(run)
    deciding = {
        setting
        for part in READ_BY[run]
        for setting, value in flatten({part: at(settings, part)}).items()
        if decides(setting, value)
        and not (run == "r1_evaluation" and isinstance(value, str | bool))
    }
    assert len(deciding) > 5
    listed = {row["setting"] for row in rows() if run in row["runs"].split()}
    # A row may hold a whole table, such as reward.weights.
    assert not {s for s in deciding if s not in listed and s.rpartition(".")[0] not in listed}
