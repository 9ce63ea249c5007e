"""`conf/cluster/`: where the processes run, and when a job is taken for lost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from megatron_r1.errors import ConfigError

_TIME = re.compile(r"(\d+-)?\d+(:\d{2}){1,2}")
_SECRET = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
_VARIABLE = re.compile("[A-Z_][A-Z0-9_]*")


@dataclass(kw_only=True)
class WatchdogConfig:
    """How long a job may go without a sign of life; 0 waits for ever.

    A rank beyond a limit writes its Python stack and ends, so that the job can be started again.
    """

    setup_s: float = 0.0
    """From the start to the first update, and whatever lies between two loops."""
    step_s: float = 0.0
    """From one update to the next, a rollout phase included."""
    checkpoint_s: float = 0.0
    """Writing one checkpoint, and waiting for one that is written in the background."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"cluster.watchdog.{name} must be >= 0, got {value}")


@dataclass(kw_only=True)
class ClusterConfig:
    """This machine, under torchrun or alone."""

    name: str = "local"
    timeout_minutes: float = 230.0
    """A collective that waits longer than this ends the job. Ranks wait in one while others have to
    do with rollout servers: it exceeds the limits of `rollout` for that, the longest of which is
    `rollout.give_up_s` of R1-Zero's longer responses, 2 x 6,600 s."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    min_free_disk_gib: float = 1.0
    """Where the run directory is; less does not pass the check of the nodes before training."""
    restarts_without_progress: int = 3
    """A job that Slurm has started again this often in a row without a newer checkpoint ends."""

    def __post_init__(self) -> None:
        if self.timeout_minutes <= 0:
            raise ConfigError(f"cluster.timeout_minutes must be > 0, got {self.timeout_minutes}")
        if self.restarts_without_progress < 1:
            raise ConfigError(
                "cluster.restarts_without_progress must be >= 1, got "
                f"{self.restarts_without_progress}"
            )


@dataclass(kw_only=True)
class SlurmConfig(ClusterConfig):
    """A Slurm job: what `python -m megatron_r1.launch` asks for.

    The headers of launch/*.sh ask for the same; sbatch's own options change those.
    """

    name: str = "slurm"
    watchdog: WatchdogConfig = field(
        default_factory=lambda: WatchdogConfig(setup_s=1800, step_s=3600, checkpoint_s=1800)
    )
    nodes: int = 2
    tasks_per_node: int = 8
    """One rank each."""
    gpus_per_node: int = 8
    """0 asks for none."""
    rollout_nodes: int = 0
    """Further nodes, as the second component of a heterogeneous job. SGLang serves there:
    `rollout.num_servers` on each. 0 starts the servers on the first node of the trainer."""
    time: str = "04:00:00"
    """Limit of one start, as sbatch takes it; the job is warned, saves and is started again."""
    warn_s: int = 600
    """Seconds of warning. Slurm is up to 60 s coarse: a phase, a checkpoint and a minute."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    max_restarts: int = 100
    """Of any kind; those without progress end much sooner."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch, such as ``constraint: h100``."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables of the job. What is secret stays in the environment that submits: sbatch hands
    it on, and nothing writes it down."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the tasks, such as ``module load cuda``."""
    container_image: str | None = None
    """For Pyxis; None runs on the nodes as they are."""
    container_mounts: list[str] = field(default_factory=list)
    """``source:target``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least_of = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "rollout_nodes": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ConfigError(f"cluster.{name} must be >= {least}, got {getattr(self, name)}")
        if not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"cluster.time = {self.time!r} is not a limit as sbatch takes it. Write "
                "hours:minutes:seconds, with days- before it where needed"
            )
        for name in self.env:
            if _SECRET.search(name):
                raise ConfigError(
                    f"cluster.env holds {name}, which would be written to scripts and logs. Take "
                    "it out and export it where you submit: sbatch hands the environment on"
                )
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(
                    f"cluster.env: {name!r} is not the name of a variable, A-Z, 0-9, _"
                )

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node
