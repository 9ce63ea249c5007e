"""Composition, conversion and what is refused before a model is built."""

from __future__ import annotations

import pytest

from megatron_r1.config.algo import PpoConfig
from megatron_r1.config.load import CONF_DIR, load_config, to_yaml
from megatron_r1.config.model import DeepseekV3Config, GroupedQueryConfig
from megatron_r1.config.overrides import usage
from megatron_r1.config.paths import flatten
from megatron_r1.config.stage import R1ZeroConfig, TinyR1ZeroConfig
from megatron_r1.errors import ConfigError


def message(*overrides: str, world_size: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides).validate(world_size)
    return str(caught.value)


def test_the_default_run_is_the_papers():
    config = load_config([])
    assert isinstance(config.stage, R1ZeroConfig)
    # R1-Zero: 32 questions x 16 outputs a step, 8,192 outputs a phase, 10,400 steps, lr 3e-6.
    stage = config.stage
    assert stage.prompts_per_step * stage.rollouts_per_prompt == 512
    assert 512 * stage.steps_per_phase == 8192
    assert (stage.num_steps, stage.reference_refresh_steps) == (10_400, 400)
    assert (config.optimizer.lr, config.algo.kl_beta, config.algo.clip_eps_high) == (3e-6, 1e-3, 10)


def test_an_entry_of_a_dict_may_have_no_settings_of_its_own():
    suite = {"tasks": {"lcm": {}, "gcd": {"low": 2}}, "path": None}
    assert flatten(suite) == {"tasks.lcm": {}, "tasks.gcd.low": 2, "path": None}


def test_a_run_is_named_after_its_stage_unless_it_has_a_name():
    for stage in ("r1_zero", "r1_stage1", "rm_helpful", "tiny_world"):
        assert load_config([f"stage={stage}"]).run.name == stage
    assert load_config(["experiment=distill_llama_8b"]).run.name == "distill"
    assert load_config(["experiment=quickstart"]).run.name == "quickstart"
    assert load_config(["stage=r1_stage1", "run.name=mine"]).run.name == "mine"
    assert "${" not in to_yaml(load_config([]))


def test_choices_and_overrides_compose():
    config = load_config(["experiment=quickstart", "model=tiny_dense", "parallel.tensor=2"])
    assert isinstance(config.stage, TinyR1ZeroConfig)
    assert isinstance(config.model, GroupedQueryConfig)
    assert config.parallel.sequence_parallel


@pytest.mark.parametrize("name", ["tiny_v3", "deepseek_v3"])
def test_deepseek_models_are_typed(name):
    assert isinstance(load_config([f"model={name}"]).model, DeepseekV3Config)


def test_the_saved_configuration_is_complete():
    text = to_yaml(load_config(["rollout.temperature=0.7"]))
    assert "temperature: 0.7" in text
    assert "kl_estimator: k3" in text  # a default of the schema, not of a file


MODELS = ["reward.models.helpful=one", "reward.models.safety=other"]
NEEDED = {
    "jsonl": ["data.path=prompts.jsonl"],
    "r1_stage4": MODELS,
}


def test_every_file_in_conf_composes(monkeypatch):
    monkeypatch.setenv("DEEPSEEK_API_KEY", "none")
    files = [f for f in sorted(CONF_DIR.glob("*/*.yaml")) if f.parent.name != "experiment"]
    assert len(files) > 15
    for file in files:
        load_config([f"{file.parent.name}={file.stem}", *NEEDED.get(file.stem, [])])


def test_unknown_key_is_named_with_a_way_out():
    text = message("rollout.temprature=0.7")
    assert "no setting rollout.temprature. Did you mean rollout.temperature?" in text
    # Hydra would take any key that is added, and the settings of all other choices stay unknown.
    assert "no setting rollout.temprature" in message("+rollout.temprature=0.7")
    assert "Did you mean optimizer.lr?" in message("stage=r1_zero", "stage.base.lr=3")
    assert "Did you mean stage?" in message("stag=r1_zero")


def test_a_new_entry_of_a_mapping_takes_a_plus():
    assert "+reward.weights.mine=0.2" in message("reward.weights.mine=0.2")
    config = load_config(["+reward.weights.mine=0.2", "~reward.weights.format"])
    assert config.reward.weights == {"accuracy": 1.0, "mine": 0.2}


def test_unknown_choice_lists_the_choices():
    text = message("model=tiny_v4")
    assert "tiny_v4" in text and "Did you mean tiny_v3?" in text
    assert "schema" not in text
    assert "r1_zero, rm_helpful" in message("stage=r1_zero_schema")


def test_a_stage_brings_its_objective_and_its_learning_rate():
    config = load_config(["stage=dpo"])
    assert (config.algo.name, config.algo.beta, config.optimizer.lr) == ("dpo", 0.1, 1e-6)
    chosen = load_config(["stage=distill", "algo=distill_logits", "optimizer=adam"])
    assert (chosen.algo.name, chosen.optimizer.lr) == ("distill_logits", 3e-6)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("stage=dpo", "stage.examples is not set"),
        ("stage=distill", "stage.examples is not set"),
        ("algo=dpo", "is no objective of stage.name = r1_zero. It is one of stage=dpo"),
        ("stage=dpo algo=dapo", "It is one of stage=r1_zero or stage=r1_stage2 or stage=r1_stage4"),
        ("stage=dpo stage.examples=x", "stage.max_tokens = 8192 exceeds model.max_positions = 512"),
        (
            "stage=dpo stage.examples=x stage.max_tokens=300 "
            "parallel.max_tokens_per_microbatch=599",
            "2 x stage.max_tokens = 2 x 300 exceeds parallel.max_tokens_per_microbatch = 599",
        ),
        ("stage=distill stage.examples=x algo=distill_logits", "set stage.teacher=DIR"),
        ("stage=distill stage.examples=x stage.teacher=y", "stage.teacher = y has no meaning"),
        ("stage=dpo algo.label_smoothing=0.5", "algo.label_smoothing must be in [0, 0.5)"),
        ("algo=ppo algo.advantage_norm=std", "compares a rollout with its critic"),
        ("algo=ppo algo.gae_lambda=1.1", "algo.gae_lambda must be in [0, 1]"),
    ],
)
def test_examples_and_critics_that_do_not_fit(overrides, expected):
    assert expected in message(*overrides.split())


def test_help_names_every_group_and_choice():
    text = usage(CONF_DIR)
    for file in CONF_DIR.glob("*/*.yaml"):
        assert file.stem in text


def test_wrong_type_names_key_and_value():
    text = message("stage.num_steps=many")
    assert "num_steps" in text and "many" in text


def test_value_out_of_range_names_setting_and_value():
    assert "rollout.temperature must be > 0, got -1" in message("rollout.temperature=-1")


def test_degrees_that_do_not_divide_the_world():
    text = message("parallel.tensor=2", "parallel.pipeline=2", world_size=6)
    assert "2 * 2 * 1 = 4 does not divide the world size 6" in text
    assert "1, 2, 3, 6" in text
    text = message("parallel.expert=4", world_size=6)
    assert "expert * expert_tensor * pipeline" in text


@pytest.mark.parametrize(
    ("overrides", "world_size", "words"),
    [
        (["parallel.tensor=3"], 3, ["model.num_attention_heads = 4", "parallel.tensor = 3"]),
        (["parallel.pipeline=5"], 5, ["5 * 1 = 5", "model.num_layers = 4"]),
        (["parallel.context=2"], 3, ["1 * 1 * 2 = 2", "world size 3"]),
        (["parallel.virtual_pipeline=2"], 1, ["virtual_pipeline = 2", "parallel.pipeline is 1"]),
        (
            ["parallel.pipeline=2", "parallel.pipeline_layers=[3,2]"],
            2,
            ["parallel.pipeline_layers = [3, 2]", "model.num_layers = 4"],
        ),
        (["parallel.expert=3"], 3, ["model.num_experts = 8"]),
        (["model=tiny_dense", "parallel.expert=2"], 2, ["parallel.expert = 2", "tiny_dense"]),
        (["parallel.tensor=2", "parallel.sequence=false"], 2, ["parallel.sequence=false"]),
        (["model=tiny_dense", "parallel.tensor=4"], 4, ["model.num_kv_heads = 2"]),
        (["rollout.max_response_tokens=512"], 1, ["model.max_positions = 512"]),
        (["experiment=quickstart", "parallel.max_tokens_per_microbatch=100"], 1, ["64 + 64"]),
        # Streams of two sequence-parallel ranks have an even length: 129 tokens take 128.
        (
            [
                *("experiment=quickstart", "parallel.tensor=2", "data.max_prompt_tokens=65"),
                "parallel.max_tokens_per_microbatch=129",
            ],
            2,
            ["65 + 64", "whole multiples of 2 are packed, 128. Set that to 130 or more"],
        ),
        (["experiment=quickstart", "data.heldout_problems=9"], 1, ["num_problems = 256", "= 9"]),
        (["experiment=quickstart", "model.init_from=runs/x"], 1, ["model.init_from = runs/x"]),
        (["experiment=quickstart", "optimizer.beta2=7"], 1, ["optimizer.beta2 must be", "[0, 1)"]),
        (["experiment=quickstart", "run.name=../x"], 1, ["run.name", "'../x'"]),
        (["stage.checkpoint_every_steps=0"], 1, ["stage.checkpoint_every_steps must be"]),
        (["stage.rollouts_per_prompt=1"], 1, ["must be >= 2"]),
        (["model.experts_per_token=3"], 1, ["experts_per_token = 3 is not twice"]),
        (["model.num_dense_layers=5"], 1, ["num_dense_layers = 5 exceeds", "num_layers = 4"]),
        (["model=tiny_dense", "model.qk_norm=true"], 1, ["qkv_bias", "qk_norm", "exported"]),
        (["model=tiny_qwen3_moe", "model.qk_norm=false"], 1, ["qk_norm = False", "Leave both out"]),
        (["model=tiny_qwen3_moe", "model.experts_per_token=9"], 1, ["= 9 exceeds", "experts = 8"]),
        (["model=tiny_qwen3_moe", "parallel.tensor=4"], 4, ["model.num_kv_heads = 2"]),
        (["model=llama3.1_8b", "model.rope.low_freq_factor=4"], 1, ["low_freq_factor = 4", "high"]),
    ],
)
def test_impossible_combinations_name_values_and_a_way_out(overrides, world_size, words):
    # The paper's response length is longer than the tiny models' context.
    short = [] if "max_response" in overrides[0] else ["rollout.max_response_tokens=64"]
    text = message(*short, *overrides, world_size=world_size)
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("algo=dapo algo.drop_zero_std_groups=false", "algo.sampling_rounds = 10 replaces"),
        ("algo=rloo algo.advantage_norm=std", "algo.kl_place = rollout_reward with"),
        ("algo=kl_penalty stage.steps_per_phase=1", "with steps_per_phase = 1 there is nothing"),
        ("algo.overlong_cache_tokens=65", "exceeds rollout.max_response_tokens = 64"),
        ("monitor.length_factor=1", "monitor.length_factor must be > 1"),
        ("monitor.learned=[helpful]", "watches helpful, which reward.weights"),
        ("monitor.heldout_prompts=9 data.heldout_problems=8", "exceeds data.heldout_problems = 8"),
        ("monitor.kl_budget=0.1 algo.kl_beta=0", "needs a reference policy"),
        ("stage=tiny_base algo=dpo monitor.kl_budget=0.1", "algo.name = dpo has no rollouts"),
    ],
)
def test_objectives_and_monitors_that_do_not_fit(overrides, expected):
    assert expected in message("rollout.max_response_tokens=64", *overrides.split())


def test_ppo_can_be_made_with_its_own_defaults_which_are_its_files():
    chosen = load_config(["algo=ppo"]).algo
    for name in ("kl_place", "advantage_baseline", "advantage_norm"):
        assert getattr(PpoConfig(), name) is getattr(chosen, name)


def test_the_engine_is_asked_for_what_the_objective_needs():
    plain = ["model=tiny_v3", "rollout=sglang", "rollout.max_response_tokens=64"]
    assert not load_config(plain).rollout.routed_experts
    stable = load_config([*plain, "algo=grpo_stable"])
    assert stable.rollout.routed_experts and stable.rollout.sampling_masks
    with pytest.raises(ConfigError, match=r"algo.replay_routing = true needs what rollout.routed"):
        load_config([*plain, "algo=grpo_stable", "rollout.routed_experts=false"]).validate(1)
    in_process = ["model=tiny_v3", "rollout.max_response_tokens=64", "algo=grpo_stable"]
    in_process.append("model.init_from=base")
    load_config(in_process).validate(1)
    with pytest.raises(ConfigError, match=r"rollout.top_p = 0.9 .* needs rollout=sglang"):
        load_config([*in_process, "rollout.top_p=0.9"]).validate(1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.steps_ahead=1"], "ranks that train cannot sample meanwhile"),
        (["rollout=sglang", "rollout.steps_ahead=2"], "must be 0 or 1, got 2"),
        (["rollout=sglang", "rollout.steps_ahead=1"], "algo.rollout_correction_cap = 0 takes no"),
        (
            ["rollout=sglang", "rollout.weights_by=collective", "rollout.tensor=2"]
            + ["rollout.attention_data=2"],
            "takes no broadcasts with data-parallel",
        ),
        (
            ["rollout=sglang", "rollout.weights_by=shared_memory", "rollout.tensor=2"]
            + ["rollout.attention_data=2"],
            "and no tensors in memory either",
        ),
        (
            ["rollout=sglang", "rollout.give_up_s=2700"],
            "must exceed rollout.request_timeout_s = 2700.0",
        ),
        (
            ["rollout=sglang", "rollout.weights_by=collective", "rollout.start_files_every=2"],
            "start_files_every = 2: a server that has to be started again samples from older",
        ),
        (["rollout=sglang", "rollout.bucket_bytes=100"], "each bucket is a request"),
    ],
)
def test_ways_of_sampling_that_cannot_be_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(["model=tiny_v3", "rollout.max_response_tokens=64", *overrides]).validate(1)


def test_ranks_wait_longer_than_servers_are_waited_for():
    common = ["model=tiny_v3", "rollout.max_response_tokens=64", "rollout=sglang"]
    common += ["model.init_from=base", "cluster.timeout_minutes=120", "rollout.longer_from_step=0"]
    load_config(common).validate(2)
    for name in ("start_timeout_s", "publish_timeout_s", "give_up_s"):
        config = load_config([*common, f"rollout.{name}=7200"])
        config.validate(1)  # nobody waits for it
        said = f"rollout.{name} = 7200.0 is no less than cluster.timeout_minutes = 120.0"
        with pytest.raises(ConfigError, match=said):
            config.validate(2)


def test_ranks_wait_as_long_for_longer_responses():
    """2 x 6,600 s are 220 minutes, which the limit of a collective allows."""
    run = ["stage=r1_zero", "model=qwen2.5_7b", "data=jsonl", "data.path=x", "rollout=sglang"]
    run += ["parallel.max_tokens_per_microbatch=66560", "model.init_from=base"]
    load_config(run).validate(2)
    short = [*run, "cluster.timeout_minutes=120"]
    load_config([*short, "stage.num_steps=8200"]).validate(2)
    said = (
        r"rollout.give_up_s x rollout.longer_factor = 13200.0 is no less than .* = 120.0 \(7200 s"
    )
    with pytest.raises(ConfigError, match=said):
        load_config(short).validate(2)
