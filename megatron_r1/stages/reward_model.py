"""What the stages of both reward models share: from files to a trained model and its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_r1.config.model import Head
from megatron_r1.config.stage import RewardModelConfig
from megatron_r1.data.examples import Example
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.telemetry.files import write_json
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_model import (
    RewardTask,
    heldout_metrics,
    train_reward_model,
)
from megatron_r1.trainers.supervised import SupervisedParts

RESULT = "eval/heldout.json"


def run_reward_model(
    session: Session,
    stage: RewardModelConfig,
    run_dir: Path,
    init_from: Path,
    task: RewardTask,
    *,
    read: Callable[[str, Tokenizer], list[Example]],
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the model as it ended."""
    config = session.config
    tokenizer = session.tokenizer(init_from)

    def examples_of(file: str) -> list[Example]:
        return session.without_long(read(file, tokenizer), file, max_tokens=stage.max_tokens)

    examples = examples_of(stage.examples)
    heldout = [] if stage.heldout is None else examples_of(stage.heldout)
    num_steps = stage.num_steps(len(examples))
    step = MegatronStep(session.policy(tokenizer, Head.scalar), config.optimizer)
    store = session.store(run_dir, stage, tokenizer)
    state = session.begin(store, step, init_from)
    check_not_past(state.step, num_steps, run_dir)
    with session.recorder(
        run_dir, stage.name, first_step=state.step, num_steps=num_steps
    ) as recorder:
        parts = SupervisedParts(megatron_step=step, store=store, recorder=recorder, job=session.job)
        seed = config.run.seed
        train_reward_model(
            parts, task, stage, config.optimizer, examples, heldout, state, seed=seed
        )
    if heldout:
        found = heldout_metrics(step.policy, heldout, task)
        result = {"step": num_steps, "examples": len(heldout), **found}
        on_main_rank(lambda: write_json(run_dir / RESULT, result))
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        session.say(f"{stage.name}: {len(heldout)} held-out examples: {figures}")
    return step
