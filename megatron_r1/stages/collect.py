"""Samples of an earlier model, scored and written down part by part."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.sft import CollectConfig
from megatron_r1.errors import DataError, StoppedEarly
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object, on_main_rank
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.stages.session import Session
from megatron_r1.telemetry.files import replace_file
from megatron_r1.telemetry.progress import Progress
from megatron_r1.types import FinishReason, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup

T = TypeVar("T")
_POLL_S = 10.0
"""Our choice: how soon a wait for the main rank's work notices a signal."""
FILTERS = ("accuracy", "format", "readable")
"""Rules that look at each sample."""


def filter_rules(session: Session, collect: CollectConfig) -> RewardConfig:
    """`FILTERS` with the run's own settings of them; a judge's data sets have no rule for
    accuracy."""
    of_form = [name for name in FILTERS if name != "accuracy"]
    judged = {dataset: of_form for dataset in collect.judged_datasets}
    return session.config.reward.measuring(FILTERS, by_dataset=judged)


def first_prompts(session: Session, collect: CollectConfig, model_dir: Path) -> list[Prompt]:
    """The prompts that are sampled: the first of the run's first epoch."""
    source = session.prompts(session.tokenizer(model_dir))
    count = len(source.train)
    return source.take(min(collect.num_prompts or count, count))


def sample_parts(
    session: Session, collect: CollectConfig, prompts: Sequence[Prompt], directory: Path
) -> Path:
    """Sample `collect.source` and score what it writes; every rank of the job calls it.

    Parts that an earlier start has written are left as they are.

    Returns: `directory`, with ``part_00000.jsonl`` and so on, a line for each sample.
    """
    size = collect.prompts_per_part
    parts = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    paths = [directory / f"part_{number:05d}.jsonl" for number in range(len(parts))]
    missing = on_main_rank(lambda: [n for n, path in enumerate(paths) if not path.is_file()])
    if not missing:
        return directory
    source = Path(collect.source)
    tokenizer = session.tokenizer_of(source)
    policy = session.policy(tokenizer)
    session.load(policy, source)
    params = SamplingParams(
        num_samples=collect.samples_per_prompt,
        max_response_tokens=session.config.rollout.max_response_tokens,
        temperature=collect.temperature,
        top_p=collect.top_p,
        top_k=0,
        seed=session.config.run.seed,
    )
    layout, telemetry = session.layout, session.config.telemetry
    total = sum(len(layout.own_share(parts[number])) for number in missing) * params.num_samples
    before = 0
    with (
        session.collecting(policy, tokenizer) as engine,
        session.scorer(filter_rules(session, collect)) as scorer,
        Progress(
            total,
            "responses",
            f"{session.config.stage.name}: sampling",
            every_s=telemetry.progress_every_s,
            enabled=layout.is_main and telemetry.progress,
        ) as progress,
    ):
        engine.publish(0)
        for number in missing:
            stop_between_parts(session)
            own = layout.own_share(parts[number])
            groups = engine.generate(
                own,
                params,
                weight_version=0,
                on_progress=lambda done, tokens, before=before: progress.update(
                    before + done, tokens=tokens
                ),
            )
            records = None
            if scorer is not None:
                records = [r for group in scorer.score(groups) for r in records_of(group)]
            else:
                for _ in groups:  # keeps step with the leader
                    pass
            before += len(own) * params.num_samples
            shares = all_gather_objects(broadcast_object(records, layout.replica), layout.dp_cp)
            stop_if_terminated(session)
            found = sorted(
                (record for share in shares for record in share),
                key=lambda record: (record["draw"], record["sample"]),
            )
            on_main_rank(lambda path=paths[number], found=found: write_lines(path, found))
    return directory


def stop_between_parts(session: Session) -> None:
    """Give a sign of life; leave where any rank was asked to stop. What was written stays.

    Raises:
        StoppedEarly: on every rank.
    """
    session.job.between_loops()
    number = session.job.signal_to_stop()
    if number:
        raise StoppedEarly(f"{signal.Signals(number).name} between two parts of samples")


def stop_if_terminated(session: Session) -> None:
    """Leave before a part is written, where SIGTERM came: Slurm sends it to every process of a job,
    and a program that it ends would be scored as a wrong answer.

    Raises:
        StoppedEarly: on every rank.
    """
    if session.job.signal_to_stop() == signal.SIGTERM:
        raise StoppedEarly("SIGTERM in a part of samples, which is sampled again")


def while_main_works(session: Session, action: Callable[[Event], T]) -> T:
    """`on_main_rank` for what takes hours, such as asking a teacher: the other ranks wait in many
    short broadcasts, none of which outlasts the time limit of a collective.

    Args:
        action: runs in a thread. Its event is set when nobody waits for it any more.
    Raises:
        StoppedEarly: on every rank, when any was asked to stop meanwhile.
    """
    given_up, results, failures = Event(), [], []

    def work() -> None:
        try:
            results.append(action(given_up))
        except BaseException as error:
            failures.append(error)

    def has_ended() -> bool:
        thread.join(_POLL_S)
        return not thread.is_alive()

    def outcome() -> T:
        if failures:
            raise failures[0]
        return results[0]

    thread = Thread(target=work, name="main rank's work", daemon=True)
    if dist.get_rank() == 0:
        thread.start()
    try:
        while not on_main_rank(has_ended):
            stop_between_parts(session)
    except BaseException:
        given_up.set()
        if thread.is_alive():
            thread.join(_POLL_S)  # what it writes just now is to be whole
        raise
    return on_main_rank(outcome)


def records_of(scored: ScoredGroup) -> Iterator[dict[str, Any]]:
    """A line for each sample of a group."""
    for rollout, reward in zip(scored.group.rollouts, scored.rewards, strict=True):
        yield record_of(scored.group.prompt, rollout, reward)


def record_of(prompt: Prompt, rollout: Rollout, reward: Reward) -> dict[str, Any]:
    return {
        "draw": prompt.draw,
        "prompt_id": prompt.id,
        "dataset": prompt.dataset,
        "sample": rollout.sample,
        "response": rollout.text,
        "tokens": len(rollout.token_ids),
        "parts": dict(reward.parts),
        "reasons": dict(reward.reasons),
    }


def read_parts(directory: Path, by_draw: Mapping[int, Prompt]) -> list[dict[str, Any]]:
    """Every line of every part, in order.

    Raises:
        DataError: a sample is of another prompt than the run has under its number.
    """
    samples = [
        json.loads(line)
        for path in sorted(directory.glob("part_*.jsonl"))
        # A response may hold U+2028 and its like, at which splitlines would split.
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    for sample in samples:
        draw, sampled = sample["draw"], sample["prompt_id"]
        prompt = by_draw.get(draw)
        if prompt is None or prompt.id != sampled:
            raise DataError(
                f"{directory} holds samples of the prompt {sampled!r}, and prompt {draw} is now "
                f"{'none' if prompt is None else repr(prompt.id)}: the file of prompts has "
                "changed. Restore it, choose another run.name, or start over with "
                "run.overwrite=true"
            )
    return samples


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """A whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A policy can write half of a surrogate pair. The backslash form of it is valid JSON.
    with (
        replace_file(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def score_texts(
    scorer: RewardScorer, cases: Sequence[tuple[Prompt, str]], *, sample: int
) -> list[dict[str, Any]]:
    """The same lines for texts that a teacher wrote, one for each prompt. On the main rank."""
    groups = [
        RolloutGroup(
            prompt=prompt,
            rollouts=(
                Rollout(
                    sample=sample,
                    token_ids=(),
                    logprobs=(),
                    finish_reason=FinishReason.stop,
                    weight_version=0,
                    text=text,
                ),
            ),
        )
        for prompt, text in cases
    ]
    return [record for group in scorer.score(groups) for record in records_of(group)]
