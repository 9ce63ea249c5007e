"""TRL's side of `grpo_vs_trl.py`: one process of a GRPOTrainer, set up for speed.

    python tools/bench/grpo_side_trl.py DIRECTORY

Reads DIRECTORY/workload.json, and the model and prompts that this project's side has written there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from grpo_workload import NO_TOKEN, Turns, Workload, even_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class TimedTrainer(GRPOTrainer):
    """Adds up the seconds of the parts of a step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds: dict[str, float] = defaultdict(float)
        self.num_tokens = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started_s

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("decoding"):
            completions, logprobs = super()._generate_single_turn(*args, **kwargs)
        self.num_tokens += sum(len(ids) for ids in completions) * self.accelerator.num_processes
        return completions, logprobs

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("before update"):
            return super()._generate_and_score_completions(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():  # the update's forward pass
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.timed("log-probabilities"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.timed("training steps"):
            return super().training_step(*args, **kwargs)


class TakesTurns(TrainerCallback):
    """Waits for this side's turn between two steps."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.trainer: TimedTrainer | None = None
        self._optimizer_s = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._turns.between_steps(self._parts)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer_s = -time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._optimizer_s += time.perf_counter()

    def _parts(self) -> dict[str, float]:
        """Of the last step."""
        trainer = self.trainer
        seconds, trainer.seconds = trainer.seconds, defaultdict(float)
        num_tokens, trainer.num_tokens = trainer.num_tokens, 0
        return {
            "tokens": num_tokens,
            "decoding": seconds["decoding"],
            "log-probabilities": seconds["log-probabilities"],
            "update": seconds["training steps"] - seconds["before update"] + self._optimizer_s,
        }


def main(directory: Path) -> None:
    turns = Turns()
    workload = Workload.load(directory)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = min(workload.rows_per_microbatch, workload.num_rollouts // num_processes)
    accumulation = workload.num_rollouts // (rows * num_processes)
    callback = TakesTurns(turns)
    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory / "hf", dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [even_tokens(ids) for ids in completion_ids],
        train_dataset=Dataset.from_dict(
            {"prompt": json.loads((directory / "prompts.json").read_text())}
        ),
        processing_class=AutoTokenizer.from_pretrained(directory / "hf"),
        callbacks=[callback],
        args=GRPOConfig(
            output_dir=str(directory / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            # One update for each generation: then TRL takes the log-probabilities of the update's
            # own forward pass for those of the policy that sampled.
            steps_per_generation=accumulation,
            num_generations=workload.samples_per_prompt,
            max_completion_length=workload.response_tokens,
            generation_kwargs={"eos_token_id": NO_TOKEN},
            temperature=1.0,
            beta=workload.kl_beta,
            loss_type="grpo",
            learning_rate=workload.learning_rate,
            lr_scheduler_type="constant",
            max_steps=1_000_000,
            shuffle_dataset=False,
            seed=workload.seed,
            # What would cost time and is not needed.
            gradient_checkpointing=False,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.eos_token_ids = [NO_TOKEN]
    callback.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
