"""One rank of the layout tests: goes through many layouts of its world size in one process.

    main("reference", DIR, MODEL)           1 rank: what layouts are compared with
    main("compare", DIR, MODEL, LAYOUTS)    W ranks: DIR/results_W.json

LAYOUTS is a list of settings of `conf/parallel`, without their prefix. Of one with `packed`
attention is handed the stream as Transformer Engine's is, of which there is a stand-in.

The reference saves a checkpoint of a model that has made two steps (so that the expert bias and
Adam's moments are not zero), then, from there, one step's loss, every gradient and the updated
weights.
Gradients are saved and loaded as a distributed checkpoint of their own: each rank of another layout
receives its slice of every reference gradient and compares it with its own.

The same weights with a new scalar head are a reward model, whose scores, step and gradients are
compared in the same way.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from tests.models.families import FAMILIES

LR = 1e-3
NUM_ROWS = 12


def main(mode: str, path: str, model_name: str, layouts: Sequence[dict[str, Any]] = ()) -> None:
    directory = Path(path)
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    if mode == "reference":
        make_reference(host, directory, model_name)
    else:
        compare_layouts(host, directory, model_name, layouts)
    stop_process_group()


def build(
    host: Host, model_name: str, parallel: dict[str, Any], *others: str, scalar_head: bool = False
) -> Any:
    from megatron_r1.config.load import load_config
    from megatron_r1.config.model import Head
    from megatron_r1.config.optimizer import OptimizerConfig
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.trainers.megatron_step import MegatronStep

    parallel = dict(parallel)
    is_packed = parallel.pop("packed", False)
    # A vocabulary that 4 does not divide, layers that no pipeline does, micro-batches of a few
    # rows.
    overrides = list(FAMILIES.get(model_name, [f"model={model_name}"]))
    overrides += ["model.vocab_size=509", "model.num_layers=5", "data.max_prompt_tokens=64"]
    if model_name in ("tiny_v3", "qwen3_moe"):
        overrides.append("model.balance_loss=0.1")  # large enough for an error in it to be seen
        overrides.append("model.num_mtp_layers=1")
    overrides += ["rollout.max_response_tokens=32", "parallel.max_tokens_per_microbatch=160"]
    overrides += [f"parallel.{name}={value}" for name, value in parallel.items()]
    overrides.append("model.init_from=base")  # whose weights nobody asks for here
    config = load_config([*overrides, *others])
    config.validate(dist.get_world_size())
    layout = enter_layout(config.parallel, seed=1)
    if layout.pp.size > 1:  # what stages send each other is of streams that are filled up
        config.precision = whole_tiles(config.precision)
    head = Head.scalar if scalar_head else Head.vocabulary
    with packed_attention() if is_packed else nullcontext():
        policy = Policy(config.model, layout, config.precision, host, seed=7, head=head)
    modules = [module for chunk in policy.chunks for module in chunk.modules()]
    cores = {type(m.core_attention).__name__ for m in modules if hasattr(m, "core_attention")}
    assert cores == {"PackedAttention" if is_packed else "PlainAttention"}
    if scalar_head:
        return MegatronStep(policy, OptimizerConfig(lr=LR, beta2=0.99))
    return MegatronStep(policy, OptimizerConfig(lr=LR, beta2=0.99), mtp_loss=0.3)


@contextmanager
def packed_attention() -> Iterator[None]:
    """Models that are built here attend by the stand-in, in all layers. No setting asks for it:
    Transformer Engine's attention takes no float32, which layouts are compared in."""
    from unittest.mock import patch

    from megatron_r1.models import precision
    from tests.models.packed_stand_in import in_place_of_transformer_engine

    def layer_parts(*arguments: Any) -> precision.LayerParts:
        parts = precision.layer_parts(*arguments)
        return dataclasses.replace(parts, attention=in_place_of_transformer_engine())

    with patch("megatron_r1.models.policy.layer_parts", layer_parts):
        yield


def whole_tiles(precision: Any) -> Any:
    """The same numbers in streams of whole tiles of tokens, as FP8 products on a GPU take them, of
    4 tokens here. Tokens that fill a tile change nothing."""
    from megatron_r1.config.precision import PrecisionConfig

    class WholeTiles(PrecisionConfig):
        token_multiple = 4

    return WholeTiles(**vars(precision))


def rows(config_vocab: int) -> list[Any]:
    """Sequences of 10 to 70 tokens with advantages, the same on every rank."""
    from megatron_r1.types import TrainRow

    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(NUM_ROWS):
        length = int(torch.randint(10, 70, (1,), generator=generator))
        tokens_L = torch.randint(0, config_vocab, (length,), generator=generator)
        mask_L = torch.arange(length) >= 5
        noise = torch.randn(3, length, generator=generator) * 0.1
        result.append(
            TrainRow(
                tokens_L=tokens_L,
                loss_mask_L=mask_L,
                advantage=float(torch.randn((), generator=generator)),
                weight=1.0 / (NUM_ROWS * (length - 5)),
                logprobs_rollout_L=noise[0] - 6,
                logprobs_old_L=noise[1] - 6,
                logprobs_ref_L=noise[2] - 6,
            )
        )
    return result


def own_batch(step: Any) -> Any:
    """This replica's rows: every dp-th, so that replicas differ in tokens and micro-batches."""
    from megatron_r1.types import TrainBatch

    dp, config = step.policy.layout.dp, step.policy.config
    every = with_masks(with_routing(rows(config.vocab_size), config), config.vocab_size)
    return TrainBatch(rows=tuple(every[dp.rank :: dp.size]))


def with_masks(some_rows: list[Any], vocab_size: int) -> list[Any]:
    """Every third row was drawn from 41 tokens at each of its trainable places."""
    generator = torch.Generator().manual_seed(2)
    gain = math.log(vocab_size / 41)  # of the probabilities, among so few
    result = []
    for number, row in enumerate(some_rows):
        if number % 3 == 1:
            kept = [
                torch.cat(
                    [token[None], torch.randperm(vocab_size, generator=generator)[:41]]
                ).unique()
                for token in row.tokens_L[row.loss_mask_L]
            ]
            counts_L = torch.zeros(row.num_tokens, dtype=torch.int64)
            counts_L[row.loss_mask_L] = torch.tensor([len(ids) for ids in kept])
            row = dataclasses.replace(
                row,
                kept_counts_L=counts_L,
                kept_ids_J=torch.cat(kept),
                logprobs_rollout_L=row.logprobs_rollout_L + gain,
                logprobs_old_L=row.logprobs_old_L + gain,
                logprobs_ref_L=row.logprobs_ref_L + gain,
            )
        result.append(row)
    return result


def with_routing(some_rows: list[Any], config: Any) -> list[Any]:
    """Every other row has experts drawn at random for all of its tokens but the last, in the place
    of the router's choices."""
    if not hasattr(config, "num_experts"):
        return some_rows
    generator = torch.Generator().manual_seed(1)
    result = []
    for number, row in enumerate(some_rows):
        if number % 2:
            shape = (row.num_tokens, config.num_layers, config.num_experts)
            drawn = torch.rand(shape, generator=generator).topk(config.experts_per_token).indices
            drawn[-1] = -1
            row = dataclasses.replace(row, routed_experts_LMK=drawn.to(torch.int16))
        result.append(row)
    return result


def loss_function() -> Any:
    from functools import partial

    from megatron_r1.algos.grpo import grpo_loss
    from megatron_r1.config.algo import GrpoConfig

    return partial(grpo_loss, config=GrpoConfig(kl_beta=0.05, clip_eps_low=0.2, clip_eps_high=0.2))


def take_step(step: Any) -> dict[str, float]:
    result = step.train_step(
        own_batch(step), step.on_logprobs(loss_function()), lr=LR, num_sequences=NUM_ROWS
    )
    assert not result.skipped
    return dict(result.metrics)


@contextmanager
def gradients_as_weights(step: Any) -> Iterator[None]:
    """Put each parameter's whole gradient where its weight is, for the checkpoint machinery."""
    gather_gradient_shards(step)
    parameters = [parameter for _, parameter in step.policy.named_parameters()]
    own = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.main_grad.clone()
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data


def gather_gradient_shards(step: Any) -> None:
    """The distributed optimizer leaves each data-parallel rank its shard of the summed gradient."""
    buffers = [b for chunk in step.chunks for b in chunk.buffers + chunk.expert_parallel_buffers]
    for buffer in buffers:
        group = buffer.data_parallel_group
        for bucket in buffer.buckets:
            shards = bucket.grad_data.chunk(group.size())
            own = shards[group.rank()].clone()
            dist.all_gather_into_tensor(bucket.grad_data, own, group=group)


def save(step: Any, path: Path) -> None:
    from megatron.core import dist_checkpointing

    path.mkdir(parents=True)
    dist_checkpointing.save({"model": step.policy.sharded_state_dict()}, str(path))


def load_into(step: Any, path: Path) -> None:
    from megatron.core import dist_checkpointing

    loaded = dist_checkpointing.load({"model": step.policy.sharded_state_dict()}, str(path))
    step.policy.load_state_dict(loaded["model"])


def parameters(step: Any) -> dict[str, torch.Tensor]:
    return {n: p.data.clone() for n, p in step.policy.named_parameters()}


def expert_biases(step: Any) -> list[torch.Tensor]:
    buffers = step.policy.named_buffers()
    return [b.clone() for name, b in buffers if name.endswith("expert_bias")]


def make_reference(host: Host, directory: Path, model_name: str) -> None:
    from megatron_r1.checkpoint.store import CheckpointStore, LoopState

    step = build(host, model_name, {})
    take_step(step)
    take_step(step)
    CheckpointStore(directory, keep=1, tokenizer_dir=None).save(
        LoopState(step=2), step.policy, step.optimizer
    )
    metrics = take_step(step)
    with gradients_as_weights(step):
        save(step, directory / "gradients")
    save(step, directory / "updated")
    responses, decode_gap = decode(step)
    reward_model = build_reward_model(host, directory, model_name, {})
    scores = pair_scores(reward_model) | rollout_scores(reward_model)
    value_metrics = take_value_step(reward_model)
    with gradients_as_weights(reward_model):
        save(reward_model, directory / "value_gradients")
    (directory / "reference.json").write_text(
        json.dumps(
            {
                "metrics": metrics,
                "responses": responses,
                "decode_gap": decode_gap,
                "scores": scores,
                "value_metrics": value_metrics,
            }
        )
    )


def compare_layouts(
    host: Host, directory: Path, model_name: str, layouts: Sequence[dict[str, Any]]
) -> None:
    reference = json.loads((directory / "reference.json").read_text())
    results = []
    for parallel in layouts:
        step = build(host, model_name, parallel)
        result = compare(step, directory, reference)
        reward_model = build_reward_model(host, directory, model_name, parallel)
        result |= compare_values(reward_model, directory, reference)
        results.append({"layout": parallel, **result})
        if dist.get_rank() == 0:
            path = directory / f"results_{dist.get_world_size()}.json"
            path.write_text(json.dumps(results, indent=1))


def compare(step: Any, directory: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """This layout against the reference: the worst difference of each kind over all ranks."""
    from megatron_r1.checkpoint.store import CheckpointStore

    store = CheckpointStore(directory, keep=1, tokenizer_dir=None)
    store.load(store.latest(), step.policy, step.optimizer)
    metrics = take_step(step)
    own_updated, own_biases = parameters(step), expert_biases(step)
    with gradients_as_weights(step):
        own = parameters(step)
        load_into(step, directory / "gradients")
        expected = parameters(step)
        gradient_gap, gradient_name = worst_gap(own, expected)
    load_into(step, directory / "updated")
    updated = parameters(step)
    update_gap = max(float((own_updated[n] - updated[n]).abs().max()) for n in updated) / LR
    biases = zip(own_biases, expert_biases(step), strict=True)
    bias_gap = max((float((a - b).abs().max()) for a, b in biases), default=0.0)
    responses, decode_gap = decode(step)
    assert all(tensor.isfinite().all() for tensor in own_updated.values())
    assert not own_biases or all(bias.abs().max() > 0 for bias in own_biases)
    worst = [None] * dist.get_world_size()
    mine = (gradient_gap, gradient_name, update_gap, bias_gap, decode_gap, responses)
    dist.all_gather_object(worst, mine)
    expected_loss = reference["metrics"]["train/loss"]
    expected_norm = reference["metrics"]["train/grad_norm"]
    return {
        "loss": abs(metrics["train/loss"] / expected_loss - 1),
        "grad_norm": abs(metrics["train/grad_norm"] / expected_norm - 1),
        "gradient": max(w[0] for w in worst),
        "gradient_name": max(worst, key=lambda w: w[0])[1],
        "update_in_lr": max(w[2] for w in worst),
        "expert_bias": max(w[3] for w in worst),
        "decode": max(w[4] for w in worst),
        # Every response of the reference, each from some rank, token by token.
        "same_responses": {key: ids for w in worst for key, ids in w[5].items()}
        == reference["responses"],
    }


def build_reward_model(
    host: Host, directory: Path, model_name: str, parallel: dict[str, Any]
) -> Any:
    """The reference's weights with a new head."""
    from megatron_r1.checkpoint.record import latest_checkpoint
    from megatron_r1.checkpoint.store import load_weights

    step = build(host, model_name, parallel, scalar_head=True)
    load_weights(step.policy, latest_checkpoint(directory / "checkpoints"))
    step.optimizer.reload_model_params()
    return step


def own_pairs(step: Any) -> Any:
    """This replica's pairs: two rows after one another, scored at their last tokens."""
    from megatron_r1.types import TrainBatch

    dp = step.policy.layout.dp
    scored = [
        dataclasses.replace(row, loss_mask_L=torch.arange(row.num_tokens) == row.num_tokens - 1)
        for row in rows(step.policy.config.vocab_size)
    ]
    pairs = list(zip(scored[::2], scored[1::2], strict=True))[dp.rank :: dp.size]
    return TrainBatch(rows=tuple(row for pair in pairs for row in pair), rows_together=2)


def pair_scores(step: Any) -> dict[str, float]:
    """By number of the row."""
    from megatron_r1.trainers.forward_passes import row_scores

    dp = step.policy.layout.dp
    scores = row_scores(step.policy, own_pairs(step)).tolist()
    return {
        str(2 * (dp.rank + dp.size * (index // 2)) + index % 2): score
        for index, score in enumerate(scores)
    }


def rollout_scores(step: Any) -> dict[str, float]:
    """What it says as a part of the reward: of the summaries of this replica's prompts, some of
    which have no such part, by prompt and sample. Fewer prompts than replicas in a world of 4."""
    from megatron_r1.config.reward import Reads, RewardConfig
    from megatron_r1.models.weight_bank import WeightBank
    from megatron_r1.trainers.reward_parts import RewardModels
    from megatron_r1.types import (
        FinishReason,
        Prompt,
        Reward,
        Rollout,
        RolloutGroup,
        ScoredGroup,
    )

    groups = []
    for draw in range(3):
        prompt = Prompt(
            id=f"p{draw}",
            draw=draw,
            question="",
            text="",
            token_ids=tuple(range(7, 12 + 5 * draw)),
            answer="",
            grader="exact",
            dataset="general" if draw < 2 else "reasoning",
        )
        rollouts = tuple(
            Rollout(
                sample=sample,
                token_ids=(),
                logprobs=(),
                finish_reason=FinishReason.stop,
                weight_version=0,
                text=f"1 2 3</think>{' '.join(str(10 * draw + i) for i in range(4 + 9 * sample))}",
            )
            for sample in range(3)
        )
        unscored = tuple(Reward(total=0.25, parts={}, reasons={}) for _ in rollouts)
        groups.append(ScoredGroup(RolloutGroup(prompt, rollouts), unscored))
    config = RewardConfig(
        weights={"accuracy": 1.0},
        mixes={"general": {"helpful": 2.0}},
        models={"helpful": "in the bank"},
        reads={"helpful": Reads.summary},
        schedules={"helpful": {10: 1.0}},
    )
    bank = WeightBank(step.policy)
    bank.store("helpful")
    models = RewardModels(step.policy, bank, config, ByteTokenizer())
    own = list(step.policy.layout.own_share(groups))
    assert models.add_scores(own, step=9, on_micro_batch=None) == own
    found = {}
    for group in models.add_scores(own, step=10, on_micro_batch=None):
        for sample, reward in enumerate(group.rewards):
            has_part = group.group.prompt.dataset == "general"
            assert list(reward.parts) == (["helpful"] if has_part else [])
            if has_part:
                score = reward.parts["helpful"]
                assert abs(reward.total - (0.25 + 2 * score)) < 1e-6
                found[f"{group.group.prompt.id}/{sample}"] = score
    return found


def pair_and_token_loss(values_T: torch.Tensor, micro: Any) -> Any:
    """Of the last tokens, as a reward model has it, and of every token, as a critic does."""
    from megatron_r1.algos.reward_losses import bradley_terry_loss
    from megatron_r1.types import LossOutput

    chosen, rejected = values_T[micro.loss_mask_T].view(-1, 2).unbind(1)
    loss = bradley_terry_loss(chosen, rejected, num_pairs=NUM_ROWS // 2)
    tokens_T = values_T[: len(values_T) - micro.num_padding]
    return LossOutput(loss=loss + 0.01 * (tokens_T - 1).square().sum(), metrics={})


def take_value_step(step: Any) -> dict[str, float]:
    from megatron_r1.trainers.output_losses import on_values

    loss = on_values(pair_and_token_loss)
    result = step.train_step(own_pairs(step), loss, lr=LR, num_sequences=NUM_ROWS)
    assert not result.skipped
    return dict(result.metrics)


def compare_values(step: Any, directory: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """The reward model in this layout against the reference."""
    scores = pair_scores(step) | rollout_scores(step)
    metrics = take_value_step(step)
    with gradients_as_weights(step):
        own = parameters(step)
        load_into(step, directory / "value_gradients")
        gradient_gap, gradient_name = worst_gap(own, parameters(step))
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (gradient_gap, gradient_name, scores))
    found = {row: score for _, _, part in everyone for row, score in part.items()}
    assert found.keys() == reference["scores"].keys()
    expected = reference["value_metrics"]
    return {
        "score": max(abs(found[row] - score) for row, score in reference["scores"].items()),
        "value_loss": abs(metrics["train/loss"] / expected["train/loss"] - 1),
        "value_grad_norm": abs(metrics["train/grad_norm"] / expected["train/grad_norm"] - 1),
        "value_gradient": max(gap for gap, _, _ in everyone),
        "value_gradient_name": max(everyone, key=lambda w: w[0])[1],
    }


def worst_gap(own: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Largest difference of a gradient relative to its own largest entry, and whose it is."""
    gaps = {}
    for name, expected_tensor in expected.items():
        assert own[name].isfinite().all(), name
        assert expected_tensor.abs().max() > 0 or ".experts." in name, name
        difference = float((own[name] - expected_tensor).abs().max())
        largest = float(expected_tensor.abs().max())
        gaps[name] = difference / largest if largest else difference
    name = max(gaps, key=gaps.__getitem__)
    return gaps[name], name


def decode(step: Any) -> tuple[dict[str, list[int]], float]:
    """Responses of this replica, and how far decoding is from the training forward, in nats.

    Fewer rows than responses, so that some wait; prompts of different lengths; and fewer prompts
    than replicas in a world of 4, so that a replica may have nothing to do but keep step.
    """
    from megatron_r1.parallel.exchange import all_gather_objects
    from megatron_r1.rollout.engine import SamplingParams
    from megatron_r1.rollout.inprocess import InProcessEngine
    from megatron_r1.trainers.forward_passes import row_logprobs
    from megatron_r1.types import Prompt, TrainBatch, TrainRow

    policy = step.policy
    generator = torch.Generator().manual_seed(3)
    prompts = [
        Prompt(
            id=str(i),
            draw=i,
            question="",
            text="",
            token_ids=tuple(torch.randint(1, 500, (5 + 7 * i,), generator=generator).tolist()),
            answer="",
            grader="exact",
        )
        for i in range(3)
    ]
    own = policy.layout.own_share(prompts)
    engine = InProcessEngine(policy, ByteTokenizer(), max_batch=5, max_prefill_tokens=64)
    params = SamplingParams(
        num_samples=3, max_response_tokens=12, temperature=0.8, top_p=1.0, top_k=0, seed=11
    )
    groups = list(engine.generate(own, params, weight_version=0))
    responses: dict[str, list[int]] = {}
    batch = []
    for group in groups:
        for rollout in group.rollouts:
            responses[f"{group.prompt.id}/{rollout.sample}"] = list(rollout.token_ids)
            num_prompt = len(group.prompt.token_ids)
            tokens_L = torch.tensor(group.prompt.token_ids + rollout.token_ids)
            mask_L = torch.arange(len(tokens_L)) >= num_prompt
            logprobs_L = torch.tensor((0.0,) * num_prompt + rollout.logprobs)
            batch.append(
                TrainRow(tokens_L=tokens_L, loss_mask_L=mask_L, logprobs_rollout_L=logprobs_L)
            )
    # Context ranks decode rows of their own, and compute the log-probabilities of all together.
    batch = [row for part in all_gather_objects(batch, policy.layout.cp) for row in part]
    trained = row_logprobs(step.policy, TrainBatch(rows=tuple(batch)), temperature=0.8)
    if not policy.layout.is_last_stage:
        return responses, 0.0
    assert all(new_L.isfinite().all() for new_L in trained)
    gaps = [
        float((new_L - row.logprobs_rollout_L)[row.loss_mask_L].abs().max())
        for new_L, row in zip(trained, batch, strict=True)
    ]
    return responses, max(gaps, default=0.0)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """Enough of a tokenizer to decode and to score with: token 0 ends a response."""

    eos_id: int = 0

    def decode(self, ids: Any) -> str:
        return " ".join(str(i) for i in ids)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split()))
