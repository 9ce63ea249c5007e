"""This project's side of `grpo_vs_trl.py`: one rank of a job that runs the loop of R1-Zero.

    python tools/bench/grpo_side_ours.py DIRECTORY

Reads DIRECTORY/workload.json; the first to come exports model and prompts there for the other side.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from grpo_workload import NO_TOKEN, Turns, Workload, even_tokens_rule

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.run import RunConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.prompts import PromptSource, open_corpus, open_prompts
from megatron_r1.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_r1.platform.host import prepare, start_process_group
from megatron_r1.rewards.registry import RULES
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.telemetry.metrics import METRICS_FILE, read_metrics
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.types import Prompt

NUM_PROMPTS_FOR_TRL = 1024
MAX_PROMPT_TOKENS = 64
NUM_STEPS = 1_000_000  # until the driver ends it


class PromptsByTurns:
    """A prompt source at which the loop, which asks it once a step, waits for its turn."""

    def __init__(self, source: PromptSource, turns: Turns, metrics: Path | None) -> None:
        """`metrics`: the file of the main rank; None on the others."""
        self._source, self._turns, self._metrics = source, turns, metrics

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def take(self, n: int, *, step: int = 0) -> list[Prompt]:
        self._turns.between_steps(self._parts)
        return self._source.take(n, step=step)

    def _parts(self) -> dict[str, float]:
        """Of the last step; the loop has counted the wait for its turn to its rollouts."""
        if self._metrics is None:
            return {}
        row = read_metrics(self._metrics)[-1]
        return {
            "tokens": row["rollout/tokens"],
            "decoding": row["time/rollout_s"] - self._turns.waited_s,
            "log-probabilities": row["time/logprobs_s"],
            "update": row["time/update_s"],
        }


def main(directory: Path) -> None:
    turns = Turns()
    workload = Workload.load(directory)
    host = prepare()
    start_process_group(host, timeout_minutes=30)
    from megatron_r1.checkpoint.hf_export import export_hf
    from megatron_r1.checkpoint.store import CheckpointStore, LoopState
    from megatron_r1.models.policy import Policy
    from megatron_r1.models.weight_bank import WeightBank
    from megatron_r1.parallel.exchange import on_main_rank
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.rollout.inprocess import InProcessEngine
    from megatron_r1.trainers.job import Job
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.rl import RlConfig, RlParts, train_rl

    config = run_config(workload)
    layout = enter_layout(config.parallel, seed=1)
    on_main_rank(lambda: make_tokenizer(config, directory / "tokenizer"))
    tokenizer = load_tokenizer(directory / "tokenizer")
    source = open_prompts(config.data, tokenizer, seed=workload.seed)
    step = MegatronStep(
        Policy(config.model, layout, config.precision, host, seed=workload.seed), config.optimizer
    )

    run_dir = directory / f"run_{layout.world_size}"
    store = CheckpointStore(run_dir, keep=1, tokenizer_dir=directory / "tokenizer")
    hf_dir = directory / "hf"
    if on_main_rank(lambda: not hf_dir.exists()):
        checkpoint = store.save(LoopState(), step.policy, step.optimizer)
        on_main_rank(lambda: export_hf(checkpoint, hf_dir, show_progress=False))
        on_main_rank(lambda: write_prompts(source, directory / "prompts.json"))
    on_main_rank(lambda: run_dir.mkdir(exist_ok=True))

    recorder = Recorder(
        run_dir,
        config.telemetry,
        label="bench",
        first_step=0,
        num_steps=NUM_STEPS,
        is_main=layout.is_main,
    )
    RULES["even_tokens"] = even_tokens_rule
    with RewardScorer(config.reward) as scorer:
        parts = RlParts(
            megatron_step=step,
            bank=WeightBank(step.policy),
            engine=InProcessEngine(
                step.policy,
                dataclasses.replace(tokenizer, eos_id=NO_TOKEN),
                max_batch=config.rollout.max_batch,
                max_prefill_tokens=config.parallel.max_tokens_per_microbatch,
            ),
            prompts=PromptsByTurns(
                source, turns, run_dir / METRICS_FILE if layout.is_main else None
            ),
            scorer=scorer,
            store=store,
            recorder=recorder,
            job=Job(step.policy.host),
        )
        settings = RlConfig(
            stage=config.stage,
            algo=config.algo,
            monitor=config.monitor,
            rollout=config.rollout,
            optimizer=config.optimizer,
            seed=workload.seed,
        )
        train_rl(parts, settings, LoopState())


def run_config(workload: Workload) -> RunConfig:
    longest_row = MAX_PROMPT_TOKENS + workload.response_tokens
    return load_config(
        [
            "stage=r1_zero",
            f"model={workload.model}",
            "data=chain_sum",
            f"data.max_prompt_tokens={MAX_PROMPT_TOKENS}",
            "data.num_problems=6000",
            "data.heldout_problems=0",
            f"rollout.max_response_tokens={workload.response_tokens}",
            f"stage.num_steps={NUM_STEPS}",
            f"stage.checkpoint_every_steps={NUM_STEPS}",
            f"stage.prompts_per_step={workload.num_prompts}",
            f"stage.rollouts_per_prompt={workload.samples_per_prompt}",
            "stage.steps_per_phase=1",
            f"parallel.max_tokens_per_microbatch={workload.rows_per_microbatch * longest_row}",
            f"algo.kl_beta={workload.kl_beta}",
            f"optimizer.lr={workload.learning_rate}",
            "+reward.weights.even_tokens=1.0",
            "~reward.weights.accuracy",
            "~reward.weights.format",
            "telemetry.tensorboard=false",
            "telemetry.progress=false",
        ]
    )


def make_tokenizer(config: RunConfig, directory: Path) -> None:
    """As the quickstart's base model trains it."""
    if directory.exists():
        return
    documents = write_corpus(open_corpus(config.data), config=CorpusConfig(), seed=1)
    texts = [text for document in documents for text in document]
    train_tokenizer(texts, vocab_size=config.model.vocab_size, directory=directory)


def write_prompts(source: PromptSource, path: Path) -> None:
    """The texts of the first prompts, which this side then draws from the start."""
    path.write_text(json.dumps([prompt.text for prompt in source.take(NUM_PROMPTS_FOR_TRL)]))
    source.seek(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
