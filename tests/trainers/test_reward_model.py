"""Tiny reward models on synthetic data: they learn, and score the same in transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_r1.algos.reward_losses import scored_pairs_loss, scored_points_loss
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.load import load_config
from megatron_r1.config.model import Head
from megatron_r1.config.reward import Reads
from megatron_r1.data.examples import Example
from megatron_r1.data.packing import build_micro_batch
from megatron_r1.data.preferences import PreferencePair
from megatron_r1.data.safety_labels import LabelledResponse
from megatron_r1.data.scored_rows import scored_row, summary_of
from megatron_r1.errors import DataError
from megatron_r1.stages.rm_helpful import helpful_task, pair_rows, read_pairs
from megatron_r1.stages.rm_safety import check_both_labels, labelled_row, safety_task
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.forward_passes import row_scores
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_model import (
    RewardTask,
    heldout_metrics,
    train_reward_model,
)
from megatron_r1.trainers.supervised import SupervisedParts
from megatron_r1.types import TrainBatch, TrainRow

OVERRIDES = [
    "model=tiny_dense",
    "model.num_layers=2",
    "stage.max_tokens=128",
    "optimizer.lr=1e-3",
    "optimizer.warmup_steps=0",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]
KIND, RUDE = ("gladly", "of course", "my pleasure"), ("go away", "whatever", "not again")


def helpful_pairs(count: int, seed: int) -> list[PreferencePair]:
    """Kind summaries are better than rude ones; thoughts are either, and say nothing."""
    rng = random.Random(seed)

    def response(words: Sequence[str]) -> str:
        thought = f"<think>{rng.choice(KIND + RUDE)} {rng.choice(KIND + RUDE)}</think>"
        number = f"{rng.randrange(10)} "
        return thought + rng.choice([number + rng.choice(words), rng.choice(words) + number])

    return [
        PreferencePair(
            f"{rng.randrange(10)} + {rng.randrange(10)} =", response(KIND), response(RUDE)
        )
        for _ in range(count)
    ]


def labelled_responses(count: int, seed: int) -> list[LabelledResponse]:
    """A threat is unsafe in the thought, too."""
    rng = random.Random(seed)
    cases = []
    for _ in range(count):
        safe = rng.random() < 0.5
        words = [rng.choice(KIND + RUDE) for _ in range(4)]
        if not safe:
            words[rng.randrange(4)] = rng.choice(("burn it", "hurt them"))
        response = f"<think>{words[0]} {words[1]}</think>{words[2]} {words[3]}"
        cases.append(LabelledResponse(f"{rng.randrange(10)} =", response, safe))
    return cases


def train(
    one_rank, run_dir: Path, tokenizer, stage: str, *choices: str, examples, heldout
) -> tuple[MegatronStep, RewardTask, list[dict], Path]:
    config = load_config([*OVERRIDES, f"stage={stage}", *choices])
    task = (helpful_task if stage == "rm_helpful" else safety_task)(config.stage)
    step = MegatronStep(one_rank.policy(config, head=Head.scalar), config.optimizer)
    run_dir.mkdir()
    num_steps = config.stage.num_steps(len(examples))
    recorder = Recorder(
        run_dir, config.telemetry, label="rm", first_step=0, num_steps=num_steps, is_main=True
    )
    store = CheckpointStore(run_dir, keep=1, tokenizer_dir=Path(tokenizer.path))
    parts = SupervisedParts(
        megatron_step=step, store=store, recorder=recorder, job=Job(one_rank.host)
    )
    state = train_reward_model(
        parts, task, config.stage, config.optimizer, examples, heldout, LoopState(), seed=1
    )
    recorder.close()
    assert state.step == num_steps
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return step, task, rows, store.latest()


def check_transformers(step: MegatronStep, checkpoint: Path, rows: Sequence[TrainRow]) -> None:
    """The exported model gives each row the same score."""
    from transformers import AutoModelForSequenceClassification

    exported = checkpoint.parents[1] / "hf"
    export_hf(checkpoint, exported, show_progress=False)
    theirs = AutoModelForSequenceClassification.from_pretrained(exported, dtype=torch.float32)
    with torch.no_grad():
        expected = torch.cat([theirs(row.tokens_L[None]).logits[0] for row in rows])
    ours = row_scores(step.policy, TrainBatch(rows=tuple(rows)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.megatron
def test_a_helpful_model_orders_nine_of_ten_new_pairs(one_rank, tokenizer, tmp_path):
    examples, heldout = (
        [pair_rows(pair, "plain", tokenizer) for pair in helpful_pairs(count, seed)]
        for count, seed in ((480, 0), (100, 1))
    )
    choices = ["stage.examples_per_step=16", "stage.evaluate_every_steps=10"]
    step, task, rows, checkpoint = train(
        one_rank,
        tmp_path / "run",
        tokenizer,
        "rm_helpful",
        *choices,
        examples=examples,
        heldout=heldout,
    )
    assert len(rows) == 30
    assert rows[0]["reward_model/accuracy"] == pytest.approx(0.5, abs=0.35)
    assert [row["step"] for row in rows if "heldout/accuracy" in row] == [10, 20, 30]
    assert rows[-1]["heldout/accuracy"] >= 0.9 and rows[-1]["heldout/margin"] > 1
    found = heldout_metrics(step.policy, heldout, task)
    assert {f"heldout/{name}": value for name, value in found.items()}.items() <= rows[-1].items()
    check_transformers(step, checkpoint, heldout[0] + heldout[1])


@pytest.mark.megatron
def test_a_safety_model_tells_threats_from_others(one_rank, tokenizer, tmp_path):
    examples, heldout = (
        [labelled_row(case, "plain", tokenizer) for case in labelled_responses(count, seed)]
        for count, seed in ((960, 0), (200, 1))
    )
    choices = ["stage.examples_per_step=32", "stage.evaluate_every_steps=100"]
    step, _, rows, checkpoint = train(
        one_rank,
        tmp_path / "run",
        tokenizer,
        "rm_safety",
        *choices,
        examples=examples,
        heldout=heldout,
    )
    assert [row["step"] for row in rows if "heldout/auc" in row] == [30]
    assert rows[-1]["heldout/auc"] >= 0.95 and rows[-1]["heldout/margin"] > 1
    check_transformers(step, checkpoint, heldout[0] + heldout[1])


def test_a_response_is_read_in_part_or_whole(tokenizer):
    response = "<think>7</think> 8 "
    assert summary_of(response) == "8"
    assert summary_of("8") == "8"
    assert summary_of("7</think>8</think>9") == "9"
    assert summary_of("<think>7") == ""  # cut off while it thought
    prompt_ids = tokenizer.encode("3 =")
    whole = scored_row(prompt_ids, response, Reads.response, tokenizer, label=0.5)
    expected = (*prompt_ids, *tokenizer.encode(response), tokenizer.eos_id)
    assert tuple(whole.tokens_L.tolist()) == expected
    assert whole.loss_mask_L.tolist() == [False] * (len(expected) - 1) + [True]
    assert whole.label == 0.5
    summary = scored_row(prompt_ids, response, Reads.summary, tokenizer)
    ids = (*prompt_ids, *tokenizer.encode("8"), tokenizer.eos_id)
    assert tuple(summary.tokens_L.tolist()) == ids
    cut = scored_row(prompt_ids, response, Reads.response, tokenizer, max_tokens=5)
    assert tuple(cut.tokens_L.tolist()) == (*expected[:4], tokenizer.eos_id)


def example_loss(
    loss: Callable[..., object], scores: Sequence[float], labels: Sequence[float], **settings
) -> tuple[float, dict[str, Tensor]]:
    """Of at most four rows of two tokens with these scores at their ends."""
    rows = [
        TrainRow(
            tokens_L=torch.zeros(2, dtype=torch.int64),
            loss_mask_L=torch.tensor([False, True]),
            label=label,
        )
        for label in labels
    ]
    micro = build_micro_batch(rows, pad_to_multiple=8, pad_token=0)
    values_T = torch.full((8,), 99.0)
    values_T[micro.loss_mask_T] = torch.tensor(scores).float()
    output = loss(values_T, micro, **settings)
    return float(output.loss), dict(output.metrics)


def test_the_pair_loss_and_its_margin_by_hand():
    # Differences 1 and -2: -log sigmoid(1) = 0.31326, -log sigmoid(-2) = 2.12693.
    loss, metrics = example_loss(scored_pairs_loss, [3, 2, 0, 2], [0.5, 0.5, 0, 0], num_pairs=4)
    assert loss == pytest.approx((0.31326 + 2.12693) / 4, abs=1e-5)
    assert [float(x) for x in metrics["reward_model/accuracy"]] == [1, 2]
    assert [float(x) for x in metrics["reward_model/margin"]] == [-1, 2]
    # A margin of 2 x 0.5 on the first: -log sigmoid(0) = 0.69315.
    loss, _ = example_loss(
        scored_pairs_loss, [3, 2, 0, 2], [0.5, 0.5, 0, 0], num_pairs=4, margin_weight=2.0
    )
    assert loss == pytest.approx((0.69315 + 2.12693) / 4, abs=1e-5)
    # Both in order: -log sigmoid(2) = 0.12693, 0.01 x (3 + 2)^2 and 0.01 x (2 + 0)^2.
    loss, metrics = example_loss(
        scored_pairs_loss, [3, 2, 2, 0], [0, 0, 0, 0], num_pairs=4, centre_weight=0.01
    )
    assert loss == pytest.approx((0.31326 + 0.12693 + 0.29) / 4, abs=1e-5)
    assert [float(x) for x in metrics["reward_model/accuracy"]] == [2, 2]


def test_the_point_loss_by_hand():
    # log(1 + e^-2) = 0.12693 and log(1 + e^-3) = 0.04859 for safe ones at 2 and 3, log(1 + e^1) =
    # 1.31326 for an unsafe one at 1, which alone is judged wrongly.
    loss, metrics = example_loss(scored_points_loss, [2, 1, 3], [1, 0, 1], num_examples=3)
    assert loss == pytest.approx((0.12693 + 1.31326 + 0.04859) / 3, abs=1e-5)
    assert [float(x) for x in metrics["reward_model/accuracy"]] == [2, 3]


def test_an_epoch_of_the_paper():
    """66,000 pairs and 106,000 labelled responses, 256 a step."""
    config = load_config(["stage=rm_helpful", "stage.examples=pairs.jsonl"])
    assert config.stage.num_steps(66_000) == 258
    assert (config.optimizer.lr, config.stage.num_epochs, config.stage.max_tokens) == (
        6e-6,
        1,
        8192,
    )
    config = load_config(["stage=rm_safety", "stage.examples=labelled.jsonl"])
    assert config.stage.num_steps(106_000) == 415


def test_examples_are_pairs(tokenizer):
    chosen, rejected = pair_rows(
        PreferencePair("1 =", "<think>x</think>1", "2", margin=1.5), "plain", tokenizer
    )
    assert chosen.label == rejected.label == 1.5
    assert chosen.num_tokens == rejected.num_tokens
    response = "<think>x</think>1"  # safety is judged of all of it
    case = LabelledResponse("1 =", response, safe=True)
    example: Example = labelled_row(case, "plain", tokenizer)
    assert [row.label for row in example] == [1.0]
    assert example[0].num_tokens == len(tokenizer.encode("1 =") + tokenizer.encode(response)) + 1


@pytest.mark.parametrize("safe", [True, False])
def test_held_out_responses_of_one_label_tell_nothing(safe):
    cases = [LabelledResponse("1 =", "1", safe=safe)] * 2
    with pytest.raises(DataError, match=f"{2 * safe} of 2 held-out responses are safe"):
        check_both_labels(cases, "heldout.jsonl")


def test_pairs_of_one_summary_are_refused_by_line(tokenizer, tmp_path):
    pair = {"prompt": "1 =", "chosen": "<think>1</think>2", "rejected": "<think>3</think>2"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    with pytest.raises(DataError, match="pairs.jsonl:1: .* have the same summary, '2'"):
        read_pairs(str(tmp_path / "pairs.jsonl"), "plain", tokenizer)
