"""What the stages of R1 refuse, and how their phases end."""

from __future__ import annotations

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.r1 import R1Stage4Config
from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.errors import ConfigError

MODELS = "reward.models.helpful=a reward.models.safety=b"
SHORT = ["rollout.max_response_tokens=64"]


def phases(stage: R1ZeroConfig) -> list[int]:
    """Updates of each phase of a run."""
    found, step = [], 0
    while step < stage.num_steps:
        found.append(stage.steps_in_phase(step))
        step += found[-1]
    return found


def test_a_phase_ends_where_the_preference_steps_begin():
    # 81 phases of 16 and one of 4 are 1,300 updates; 25 of 16 are the last 400.
    assert phases(R1Stage4Config()) == [16] * 81 + [4] + [16] * 25
    assert phases(R1Stage4Config(num_steps=10, preference_steps=3, steps_per_phase=4)) == [4, 3, 3]
    assert phases(R1Stage4Config(num_steps=8, preference_steps=0, steps_per_phase=4)) == [4, 4]
    assert phases(R1ZeroConfig()) == [16] * 650
    assert phases(R1ZeroConfig(num_steps=10, steps_per_phase=4)) == [4, 4, 2]


def test_r1_zero_samples_longer_responses_from_update_8200_on():
    rollout = load_config(["stage=r1_zero"]).rollout
    # Phases of 16 begin after 8,192 and 8,208 updates.
    assert [rollout.response_tokens_after(step) for step in (8_192, 8_208)] == [32_768, 65_536]
    room = "parallel.max_tokens_per_microbatch=33792"
    run = ["stage=r1_zero", "model=qwen2.5_7b", "data=jsonl", "data.path=x", room]
    with pytest.raises(ConfigError, match=r"longer_factor = 1024 \+ 65536 exceeds parallel.max_t"):
        load_config(run).validate(1)
    load_config([*run, "stage.num_steps=8200", "model.init_from=base"]).validate(1)


FILE = "stage.examples=x stage.max_tokens=128"
SAMPLED = "stage.collect.source=x stage.max_tokens=128"


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ("stage=r1_zero", "a model"),
        (f"stage=r1_stage1 {SAMPLED}", "a model to fine-tune"),
        ("stage=r1_stage2", "a model"),
        (f"stage=r1_stage3 {SAMPLED}", "a model to fine-tune"),
        (f"stage=r1_stage4 {MODELS}", "a model"),
        (f"stage=sft {FILE}", "a model to fine-tune"),
        (f"stage=dpo {FILE}", "a policy, which is its reference too"),
        (f"stage=rm_helpful {FILE}", "a language model, whose body is kept and gets a new head"),
        (f"stage=rm_safety {FILE}", "a language model, whose body is kept and gets a new head"),
        (f"stage=distill {FILE}", "a student"),
        ("stage=evaluation", "a model to measure"),
    ],
)
def test_a_stage_that_starts_from_a_model_asks_for_it_before_anything_runs(overrides, what):
    given = [*overrides.split(), *SHORT]
    with pytest.raises(ConfigError, match=f"starts from {what}: set model.init_from=DIR"):
        load_config(given).validate(1)
    load_config([*given, "model.init_from=base"]).validate(1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("stage=r1_stage1 stage.max_tokens=128", r"stage.collect.source is not set"),
        ("stage=r1_stage1 stage.examples=x", r"stage.examples = x has no meaning"),
        ("stage=r1_stage1 stage.few_shot=x", r"stage.teacher.enabled = false"),
        ("stage=r1_stage1 stage.collect.temperature=0", r"collect.temperature must be > 0"),
        ("stage=r1_stage3 stage.heldout_frac=1", r"heldout_frac must be in \[0, 1\), got 1.0"),
        ("stage=r1_stage3 stage.reasoning_per_general=-1", r"reasoning_per_general must be >= 0"),
        ("stage=sft", r"stage.examples is not set"),
        ("stage=sft stage.examples=x", r"stage.max_tokens = 32768 exceeds model.max_positions"),
        ("stage=r1_stage4 reward=r1_stage2", r"reward.mixes, which is empty"),
        (
            f"stage=r1_stage4 +reward.schedules={{helpful:{{9:1.0}},safety:{{9:1.0}}}} {MODELS}",
            r"reward.schedules names helpful, safety",
        ),
        (
            f"stage=r1_stage4 stage.preference_steps=1701 {MODELS}",
            r"preference_steps = 1701 must lie betw",
        ),
        ("stage=r1_pipeline +stage.columns={R1:four}", r"columns names four, which is neither"),
        ("stage=r1_pipeline stage.only=[four]", r"only names four, which is no step"),
        ("reward.readability.min_language=2", r"reward.readability.min_language must be in"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config([*overrides.split(), *SHORT]).validate(1)
