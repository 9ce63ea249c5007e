"""A scalar head: what it computes, where its body comes from, what its checkpoints keep."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.hf_load import load_hf_weights
from megatron_r1.checkpoint.store import CheckpointStore, LoopState, load_weights
from megatron_r1.config.model import Head
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.policy import Policy
from megatron_r1.trainers.forward_passes import row_scores, row_values
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.output_losses import on_values
from megatron_r1.types import LossOutput, MicroBatch, TrainBatch, TrainRow
from tests.checkpoint.hub import write_with_transformers
from tests.models.builders import random_tokens, stream_of
from tests.models.families import FAMILIES, load_family

pytestmark = pytest.mark.megatron

LENGTHS = (12, 5, 9, 20)


def reward_model(one_rank, family: str, *overrides: str, seed: int = 7) -> Policy:
    config = load_family(family, *overrides)
    layout = one_rank.layout(config.parallel)
    return Policy(
        config.model, layout, config.precision, one_rank.host, seed=seed, head=Head.scalar
    )


def batch() -> TrainBatch:
    """Two pairs, to be scored at their last tokens."""
    rows = [
        TrainRow(
            tokens_L=random_tokens(length, seed=length),
            loss_mask_L=torch.arange(length) == length - 1,
        )
        for length in LENGTHS
    ]
    return TrainBatch(rows=tuple(rows), rows_together=2)


def difference_loss(values_T: Tensor, micro: MicroBatch) -> LossOutput:
    chosen, rejected = values_T[micro.loss_mask_T].view(-1, 2).unbind(1)
    return LossOutput(loss=(rejected - chosen).sum(), metrics={})


DIFFERENCE = on_values(difference_loss)


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_is_the_last_hidden_state_times_the_heads_weight(family, one_rank):
    policy = reward_model(one_rank, family)
    states = []
    hook = policy.chunks[0].decoder.register_forward_hook(lambda *call: states.append(call[2]))
    tokens_T = random_tokens(sum(LENGTHS))
    with policy.inference():
        values_T = policy.forward(tokens_T, stream_of(LENGTHS))
    hook.remove()
    expected_T = states[0][:, 0].double() @ policy.chunks[0].score.weight[0].double()
    assert values_T.dtype is torch.float32
    torch.testing.assert_close(values_T.double(), expected_T, rtol=0, atol=1e-6)
    assert values_T.std() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_body_is_drawn_like_a_language_models_and_nothing_else_is_there(family, one_rank):
    policy = reward_model(one_rank, family, "model.num_mtp_layers=0")
    language_model = one_rank.policy(load_family(family, "model.num_mtp_layers=0"))
    own, other = weights(policy), weights(language_model)
    other.pop("output_layer.weight", None)
    head = own.pop("score.weight")
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert head.shape == (1, 128)
    assert float(head.std()) == pytest.approx(policy.config.init_std, rel=0.3)


def test_scores_do_not_depend_on_micro_batches_and_a_pair_stays_together(one_rank):
    whole = row_scores(reward_model(one_rank, "deepseek_v3"), batch())
    # 29 tokens hold the larger pair; three of the rows would fit by themselves.
    split = reward_model(one_rank, "deepseek_v3", "parallel.max_tokens_per_microbatch=29")
    torch.testing.assert_close(row_scores(split, batch()), whole, rtol=0, atol=1e-6)
    step = MegatronStep(split, OptimizerConfig())
    outputs = step.accumulate_gradients(batch(), DIFFERENCE, num_sequences=4)
    assert [int(output["train/tokens"][0]) for output in outputs] == [29, 17]
    loss = sum(float(output["train/loss"][0]) for output in outputs)
    assert loss == pytest.approx(float(whole[1] - whole[0] + whole[3] - whole[2]), abs=1e-5)


def test_the_gradient_is_that_of_plain_autograd(one_rank):
    step = MegatronStep(reward_model(one_rank, "qwen3"), OptimizerConfig())
    step.accumulate_gradients(batch(), DIFFERENCE, num_sequences=4)
    policy = reward_model(one_rank, "qwen3")
    device = policy.host.device
    tokens_T = torch.cat([row.tokens_L for row in batch().rows]).to(device)
    scores = policy.forward(tokens_T, stream_of(LENGTHS, device=device))[
        torch.tensor(LENGTHS).cumsum(0) - 1
    ]
    loss = scores[1] - scores[0] + scores[3] - scores[2]
    named = dict(policy.named_parameters())
    plain = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    for name, parameter in step.policy.named_parameters():
        gap = (parameter.main_grad - plain[name]).abs().max()
        assert gap <= 1e-4 * plain[name].abs().max(), f"{name}: {gap:.1e}"


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2.5"])
def test_it_starts_from_a_language_models_checkpoint_and_comes_back_whole(
    family, one_rank, tmp_path
):
    """The language model has prediction layers or tied embeddings, which it has no use for."""
    mtp = ["model.num_mtp_layers=1"] if family == "deepseek_v3" else []
    language_model = MegatronStep(
        one_rank.policy(load_family(family, *mtp), seed=1), OptimizerConfig()
    )
    row = dataclasses.replace(batch().rows[0], weight=1.0)
    language_model.train_step(
        TrainBatch((row,)), language_model.on_logprobs(sft_loss), lr=1e-3, num_sequences=1
    )
    store = CheckpointStore(tmp_path / "lm", keep=1, tokenizer_dir=None)
    lm_path = store.save(LoopState(), language_model.policy, language_model.optimizer)

    step = MegatronStep(reward_model(one_rank, family, *mtp), OptimizerConfig())
    head = weights(step.policy)["score.weight"]
    load_weights(step.policy, lm_path)
    step.optimizer.reload_model_params()
    own, other = weights(step.policy), weights(language_model.policy)
    assert torch.equal(own.pop("score.weight"), head)
    assert all(torch.equal(own[name], other[name]) for name in own)

    step.train_step(batch(), DIFFERENCE, lr=1e-3, num_sequences=4)
    store = CheckpointStore(tmp_path / "rm", keep=1, tokenizer_dir=None)
    path = store.save(LoopState(step=1), step.policy, step.optimizer)
    expected = row_scores(step.policy, batch())
    went_on = step.train_step(batch(), DIFFERENCE, lr=1e-3, num_sequences=4).metrics

    again = MegatronStep(reward_model(one_rank, family, seed=99), OptimizerConfig())
    store.load(path, again.policy, again.optimizer)
    assert torch.equal(row_scores(again.policy, batch()), expected)
    resumed = again.train_step(batch(), DIFFERENCE, lr=1e-3, num_sequences=4).metrics
    assert resumed == went_on

    scorer = reward_model(one_rank, family, seed=5)
    load_weights(scorer, path)
    assert torch.equal(row_scores(scorer, batch()), expected)
    with pytest.raises(CheckpointError, match="has a scalar head"):
        load_weights(language_model.policy, path)


def test_it_starts_from_a_hugging_face_language_model(one_rank, tmp_path):
    hub = write_with_transformers(tmp_path, load_family("qwen2.5").model, dtype=torch.float32)
    policy = reward_model(one_rank, "qwen2.5")
    head = weights(policy)["score.weight"]
    language_model = one_rank.policy(load_family("qwen2.5"))
    load_hf_weights(policy, hub)
    load_hf_weights(language_model, hub)
    own, other = weights(policy), weights(language_model)
    assert torch.equal(own.pop("score.weight"), head)
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_values_are_those_of_every_token(one_rank):
    policy = reward_model(one_rank, "llama3")
    values = row_values(policy, batch())
    assert [len(values_L) for values_L in values] == list(LENGTHS)
    scores_N = row_scores(policy, batch())
    assert [float(values_L[-1]) for values_L in values] == scores_N.tolist()
