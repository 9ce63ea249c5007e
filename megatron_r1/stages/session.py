"""A job on its ranks: platform, process groups, layout and run directory, from start to end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.hf_load import load_hf_weights
from megatron_r1.checkpoint.record import TOKENIZER, resolve_checkpoint
from megatron_r1.checkpoint.store import load_weights
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.data.tokenizer import Tokenizer, load_tokenizer
from megatron_r1.errors import ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import on_every_rank, on_main_rank
from megatron_r1.parallel.layout import Layout, enter_layout, leave_layout
from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from megatron_r1.platform.node_check import check_nodes, host_name
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.inprocess import InProcessEngine
from megatron_r1.signals import terminate_later
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.telemetry.run_dir import RunDir
from megatron_r1.telemetry.watchdog import Watchdog
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep


@dataclass(frozen=True)
class Session:
    """What every stage of a job shares."""

    config: RunConfig
    host: Host
    layout: Layout
    run_dir: Path
    job: Job

    def policy(self, tokenizer: Tokenizer) -> Policy:
        """A policy with weights drawn from the run's seed."""
        tokenizer.check_fits(self.config.model.vocab_size)
        config = self.config
        return Policy(config.model, self.layout, config.precision, self.host, seed=config.run.seed)

    def megatron_step(
        self, tokenizer: Tokenizer, optimizer: OptimizerConfig, *, mtp_loss: float
    ) -> MegatronStep:
        return MegatronStep(self.policy(tokenizer), optimizer, mtp_loss=mtp_loss)

    def engine(self, policy: Policy, tokenizer: Tokenizer) -> InProcessEngine:
        return InProcessEngine(
            policy,
            tokenizer,
            max_batch=self.config.rollout.max_batch,
            max_prefill_tokens=self.config.parallel.max_tokens_per_microbatch,
        )

    @contextmanager
    def scorer(self, config: RewardConfig) -> Iterator[RewardScorer | None]:
        """Reward workers on leaders; None on the other ranks."""
        if not self.layout.is_leader:
            yield None
            return
        with RewardScorer(config) as scorer:
            yield scorer

    @contextmanager
    def recorder(
        self, run_dir: Path, label: str, *, first_step: int, num_steps: int
    ) -> Iterator[Recorder]:
        recorder = Recorder(
            run_dir,
            self.config.telemetry,
            label=label,
            first_step=first_step,
            num_steps=num_steps,
            is_main=self.layout.is_main,
        )
        try:
            yield recorder
        except BaseException:
            recorder.close(draw=False)  # nothing more that could fail and hide the error
            raise
        recorder.close()

    def tokenizer(self, init_from: Path | None) -> Tokenizer:
        """`data.tokenizer`, or the one that lies beside the checkpoint to start from."""
        if self.config.data.tokenizer is not None:
            return load_tokenizer(Path(self.config.data.tokenizer))
        if init_from is None:
            raise ConfigError(
                "no tokenizer: set data.tokenizer=DIR, or model.init_from=DIR to take the one of a "
                "checkpoint"
            )
        if is_hf_directory(init_from):
            return load_tokenizer(init_from)
        return load_tokenizer(resolve_checkpoint(init_from) / TOKENIZER)

    def start_from(self, megatron_step: MegatronStep, init_from: Path) -> None:
        """Put weights into a fresh policy and its optimizer's master copy.

        Args:
            init_from: a run, one of its checkpoints, or a Hugging Face model.
        """
        policy = megatron_step.policy
        if is_hf_directory(init_from):
            on_every_rank(lambda: load_hf_weights(policy, init_from))
        else:
            load_weights(policy, resolve_checkpoint(init_from))
        megatron_step.optimizer.reload_model_params()

    def say(self, message: str) -> None:
        """Print a line, once for the job."""
        if self.layout.is_main:
            print(message, flush=True)


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """Join the job, try its nodes, build its layout, take the run directory; give all back at the
    end.

    Raises:
        NodeError: a machine is unfit.
    """
    host = prepare()
    cluster = config.cluster
    rank = int(os.environ.get("RANK", "0"))
    watchdog = Watchdog(cluster.watchdog, rank=rank, host=host_name())
    watchdog.start()
    start_process_group(host, timeout_minutes=cluster.timeout_minutes)
    try:
        hosts = check_nodes(host, config.run.dir, min_free_disk_gib=cluster.min_free_disk_gib)
        watchdog.know(hosts, config.run.dir / "stalls" / on_main_rank(name_of_start))
        layout = enter_layout(config.parallel, seed=config.run.seed)
        run_dirs: list[RunDir] = []
        on_main_rank(lambda: run_dirs.append(RunDir(config)))
        job = Job(
            host,
            watchdog=watchdog,
            hosts=hosts,
            stragglers_every_steps=config.telemetry.stragglers_every_steps,
        )
        try:
            with terminate_later():
                yield Session(
                    config=config, host=host, layout=layout, run_dir=config.run.dir, job=job
                )
        finally:
            for run_dir in run_dirs:
                run_dir.close()
            leave_layout()
    finally:
        stop_process_group()
        watchdog.stop()


def name_of_start() -> str:
    """Of one start of a run, for what is kept of each: Slurm's job and restart, or the time."""
    if "SLURM_JOB_ID" in os.environ:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return f"{os.environ['SLURM_JOB_ID']}-restart{restart}"
    return time.strftime("%Y%m%d-%H%M%S")


def check_not_past(step: int, num_steps: int, run_dir: Path) -> None:
    """Refuse to end a run at a step that it has left behind."""
    if step > num_steps:
        raise ConfigError(
            f"{run_dir} has made {step} updates, more than num_steps = {num_steps}. Raise it, "
            "choose another run.name, or run.overwrite=true to start over"
        )
