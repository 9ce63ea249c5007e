"""A job on its ranks: platform, process groups, layout and run directory, from start to end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_r1.checkpoint.artifacts import inputs_of
from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.hf_load import load_hf_weights
from megatron_r1.checkpoint.record import (
    TOKENIZER,
    longer_than_made_for,
    resolve_checkpoint,
)
from megatron_r1.checkpoint.store import CheckpointStore, LoopState, load_weights
from megatron_r1.config.model import Head
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.config.stage import StageConfig
from megatron_r1.data.examples import Example, without_long
from megatron_r1.data.prompts import PromptSource, open_prompts
from megatron_r1.data.tokenizer import Tokenizer, load_tokenizer
from megatron_r1.errors import ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import on_every_rank, on_main_rank
from megatron_r1.parallel.layout import Layout, enter_layout, leave_layout
from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from megatron_r1.platform.node_check import check_nodes, host_name
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import RolloutEngine
from megatron_r1.rollout.inprocess import InProcessEngine
from megatron_r1.rollout.server_set import ServerSet
from megatron_r1.rollout.sglang import SglangEngine
from megatron_r1.signals import terminate_later
from megatron_r1.stages.rollout_engine import rollout_servers, weight_transport
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.telemetry.restarts import name_of_start
from megatron_r1.telemetry.run_dir import RunDir
from megatron_r1.telemetry.watchdog import Watchdog
from megatron_r1.trainers.critic import Critic
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.weights.publish import Publisher
from megatron_r1.weights.transport import WeightTransport


@dataclass(frozen=True)
class Session:
    """What every stage of a job shares."""

    config: RunConfig
    host: Host
    layout: Layout
    run_dir: Path
    job: Job
    servers: ServerSet | None = None
    """On the main rank, where rollouts come from servers; none is started before it is needed."""
    opened: ExitStack = field(default_factory=ExitStack)
    """What is closed at the end of the session, before the servers end."""

    def policy(self, tokenizer: Tokenizer, head: Head = Head.vocabulary) -> Policy:
        """A policy with weights drawn from the run's seed."""
        tokenizer.check_fits(self.config.model.vocab_size)
        config, seed = self.config, self.config.run.seed
        return Policy(config.model, self.layout, config.precision, self.host, seed=seed, head=head)

    def megatron_step(
        self, tokenizer: Tokenizer, optimizer: OptimizerConfig, *, mtp_loss: float
    ) -> MegatronStep:
        return MegatronStep(self.policy(tokenizer), optimizer, mtp_loss=mtp_loss)

    def engine(
        self, policy: Policy, tokenizer: Tokenizer, transport: WeightTransport | None = None
    ) -> RolloutEngine:
        """What samples from this policy. Every rank of the job calls it.

        Args:
            transport: how its weights get to servers; None: the configured way.
        """
        config = self.config.rollout
        if not isinstance(config, SglangConfig):
            return InProcessEngine(
                policy,
                tokenizer,
                max_batch=config.max_batch,
                max_prefill_tokens=self.config.parallel.max_tokens_per_microbatch,
            )
        if transport is None:
            transport = weight_transport(policy, tokenizer, config, self.run_dir)
        publisher = Publisher(transport, self.servers, config)
        engine = SglangEngine(
            config, policy.config, self.layout, tokenizer, publisher, self.servers
        )
        self.opened.callback(engine.close)
        return engine

    @contextmanager
    def collecting(self, policy: Policy, tokenizer: Tokenizer) -> Iterator[RolloutEngine]:
        """An engine whose servers end with the block: what follows it trains, without rollouts."""
        with ExitStack() as opened:
            yield replace(self, opened=opened).engine(policy, tokenizer)
        if self.servers is not None:
            self.servers.release()

    def store(self, run_dir: Path, stage: StageConfig, tokenizer: Tokenizer) -> CheckpointStore:
        return CheckpointStore(
            run_dir,
            keep=stage.keep_checkpoints,
            tokenizer_dir=Path(tokenizer.path),
            in_background=stage.background_checkpoints,
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

    def tokenizer(self, init_from: Path) -> Tokenizer:
        """`data.tokenizer`, or the one that lies beside the checkpoint to start from."""
        if self.config.data.tokenizer is not None:
            return load_tokenizer(Path(self.config.data.tokenizer))
        return self.tokenizer_of(init_from)

    def tokenizer_of(self, model_dir: Path) -> Tokenizer:
        """The one that lies beside a model's weights."""
        if is_hf_directory(model_dir):
            return load_tokenizer(model_dir)
        return load_tokenizer(resolve_checkpoint(model_dir) / TOKENIZER)

    def prompts(self, tokenizer: Tokenizer) -> PromptSource:
        """The run's prompts, after saying of which problems and lines there is none."""
        prompts = open_prompts(self.config.data, tokenizer, seed=self.config.run.seed)
        for reason, count in prompts.dropped.items():
            self.say(f"{count} prompts {reason}, and were dropped")
        return prompts

    def start_from(self, megatron_step: MegatronStep, init_from: Path) -> None:
        """Put weights into a fresh policy and its optimizer's master copy.

        Args:
            init_from: a run, one of its checkpoints, or a Hugging Face model.
        """
        self.load(megatron_step.policy, init_from)
        megatron_step.optimizer.reload_model_params()

    def load(self, policy: Policy, model_dir: Path) -> None:
        """Put a model's weights into a policy of its shape."""
        if is_hf_directory(model_dir):
            made_for = on_every_rank(lambda: load_hf_weights(policy, model_dir))
        else:
            made_for = load_weights(policy, resolve_checkpoint(model_dir))
        note = longer_than_made_for(model_dir, made_for, policy.config)
        if note is not None:
            self.say(note)

    def begin(
        self,
        store: CheckpointStore,
        megatron_step: MegatronStep,
        init_from: Path,
        bank: WeightBank | None = None,
        critic: Critic | None = None,
    ) -> LoopState:
        """Go on from the run's last checkpoint, or start from `init_from` if it has none."""
        latest = store.latest()
        critic_step = None if critic is None else critic.megatron_step
        if latest is None:
            self.start_from(megatron_step, init_from)
            if critic is not None:
                own = critic.config.critic_init_from
                self.start_from(critic_step, init_from if own is None else Path(own))
            store.keep_scales(init_from)
            return LoopState()
        trained = megatron_step.policy, megatron_step.optimizer
        state = store.load(latest, *trained, bank, critic_step)
        self.say(f"{self.config.stage.name}: resuming after step {state.step}")
        return state

    def without_long(
        self, examples: Sequence[Example], path: str, *, max_tokens: int, may_be_none: bool = False
    ) -> list[Example]:
        """Examples of a file that are not too long, after saying how many are."""
        kept = without_long(examples, path, max_tokens=max_tokens, may_be_none=may_be_none)
        if len(kept) < len(examples):
            self.say(
                f"{len(examples) - len(kept)} of {len(examples)} examples in {path} are longer "
                f"than stage.max_tokens = {max_tokens} and were dropped"
            )
        return kept

    def say(self, message: str) -> None:
        """Print a line, once for the job."""
        if self.layout.is_main:
            print(message, flush=True)


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """Join the job, build its layout, take the run directory; give all back at the end."""
    with open_reader(config) as session:
        run_dirs: list[RunDir] = []
        on_main_rank(lambda: run_dirs.append(RunDir(config, inputs_of(config))))
        try:
            yield session
        finally:
            for run_dir in run_dirs:
                run_dir.close()


@contextmanager
def open_reader(config: RunConfig) -> Iterator[Session]:
    """Join the job, try its nodes, build its layout. The run directory stays another job's, if it
    is one's: nothing is trained.

    Raises:
        NodeError: a machine is unfit.
    """
    host = prepare()
    cluster = config.cluster
    rank = int(os.environ.get("RANK", "0"))
    watchdog = Watchdog(cluster.watchdog, rank=rank, host=host_name())
    watchdog.start()
    has_joined = start_process_group(host, timeout_minutes=cluster.timeout_minutes)
    try:
        hosts = check_nodes(host, config.run.dir, min_free_disk_gib=cluster.min_free_disk_gib)
        watchdog.know(hosts, config.run.dir / "stalls" / on_main_rank(name_of_start))
        layout = enter_layout(config.parallel, seed=config.run.seed)
        job = Job(
            host,
            watchdog=watchdog,
            hosts=hosts,
            stragglers_every_steps=config.telemetry.stragglers_every_steps,
        )
        try:
            with (
                rollout_servers(config, host) as servers,
                ExitStack() as opened,
                terminate_later(),
            ):
                yield Session(
                    config=config,
                    host=host,
                    layout=layout,
                    run_dir=config.run.dir,
                    job=job,
                    servers=servers,
                    opened=opened,
                )
        finally:
            leave_layout()
    finally:
        if has_joined:  # not a pipeline, whose steps follow one another in one job
            stop_process_group()
        watchdog.stop()


def check_not_past(step: int, num_steps: int, run_dir: Path) -> None:
    """Refuse to end a run at a step that it has left behind."""
    if step > num_steps:
        raise ConfigError(
            f"{run_dir} has made {step} updates, more than num_steps = {num_steps}. Raise it, "
            "choose another run.name, or run.overwrite=true to start over"
        )
