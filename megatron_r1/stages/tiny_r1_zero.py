"""The quickstart: a tiny base model, its pass@1, R1-Zero from it, its pass@1 again, and a table."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from megatron_r1.config.stage import TinyR1ZeroConfig
from megatron_r1.evaluation.runner import summarise
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.stages.eval_parts import forget_parts, sample_in_parts
from megatron_r1.stages.r1_zero import run_r1_zero
from megatron_r1.stages.session import Session
from megatron_r1.stages.tiny_base import run_tiny_base
from megatron_r1.telemetry.files import write_json
from megatron_r1.telemetry.metrics import METRICS_FILE, read_metrics
from megatron_r1.telemetry.table import render_table
from megatron_r1.trainers.megatron_step import MegatronStep


def run_tiny_r1_zero(session: Session, stage: TinyR1ZeroConfig) -> None:
    """Each part is skipped when an earlier start of this run has finished it."""
    base_dir, zero_dir = session.run_dir / "base", session.run_dir / "r1_zero"
    base = run_tiny_base(session, stage.base, base_dir)
    base_result = evaluate_once(session, stage, base, base_dir, stage.base.num_steps)
    del base
    zero = run_r1_zero(session, stage.zero, zero_dir, init_from=base_dir)
    zero_result = evaluate_once(session, stage, zero, zero_dir, stage.zero.num_steps)

    def report() -> None:
        seconds = {name: training_seconds(session.run_dir / name) for name in ("base", "r1_zero")}
        evaluating = base_result["seconds"] + zero_result["seconds"]
        seconds |= {"evaluation": evaluating, "total": sum(seconds.values()) + evaluating}
        summary = {"base": base_result, "r1_zero": zero_result, "seconds": seconds}
        write_json(session.run_dir / "summary.json", summary)
        _print_summary(summary, zero_dir / "curves.png")

    on_main_rank(report)


def training_seconds(run_dir: Path) -> float:
    """Seconds of all updates of a run, however often it was started."""
    return sum(row["time/step_s"] for row in read_metrics(run_dir / METRICS_FILE))


def evaluate_once(
    session: Session, stage: TinyR1ZeroConfig, trained: MegatronStep, model_dir: Path, step: int
) -> dict[str, Any]:
    """The held-out result of a model after `step` updates, from `eval/` if it is known there."""
    name = model_dir.name
    path = session.run_dir / "eval" / f"{name}.json"
    question = {"step": step, "evaluation": dataclasses.asdict(stage.evaluation)}

    def read_known() -> dict[str, Any] | None:
        try:
            known = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return None  # none yet, or damaged: it is found again
        return known if known.items() >= question.items() else None

    known = on_main_rank(read_known)
    if known is not None:
        return known
    started_s = time.monotonic()
    config = session.config
    tokenizer = session.tokenizer(model_dir)
    questions = session.prompts(tokenizer).heldout_prompts(stage.evaluation.num_problems)
    rules = config.reward.measuring(["accuracy", "format"])
    params = SamplingParams(
        num_samples=stage.evaluation.samples_per_problem,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=stage.evaluation.temperature,
        top_p=stage.evaluation.top_p,
        top_k=0,
        seed=stage.evaluation.seed,
    )
    outcomes = sample_in_parts(
        session,
        trained.policy,
        tokenizer,
        questions,
        params,
        rules,
        path,
        question,
        weight_version=step,
    )
    result = summarise(outcomes).to_json()
    result = {**result, **question, "seconds": time.monotonic() - started_s}

    def conclude() -> None:
        write_json(path, result)
        forget_parts(path)

    on_main_rank(conclude)
    return result


def _print_summary(summary: dict[str, Any], curves: Path) -> None:
    header = ["model", "pass@1", "format", "response tokens", "problems", "samples"]
    rows = [
        [
            name,
            f"{result['pass@1']:.3f}",
            f"{result['format']:.3f}",
            f"{result['response_tokens_mean']:.1f}",
            str(result["problems"]),
            str(result["samples"]),
        ]
        for name, result in ((n, summary[n]) for n in ("base", "r1_zero"))
    ]
    print(render_table(header, rows))
    print(f"{summary['seconds']['total']:.0f} s; curves in {curves}")
