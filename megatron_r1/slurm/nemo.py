"""NeMo-Run (0.11.1): a chain becomes an experiment of sbatch scripts.

Each task runs launch/step.sh, as the hand-kept scripts of launch/ do, and the headers ask for the
same. What NeMo-Run leaves open is closed here: it quotes nothing, starts a user's mistake again,
and ends ranks that are still saving when the first one leaves.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_r1.config.cluster import SlurmConfig
from megatron_r1.errors import EXIT_USER_ERROR, ConfigError
from megatron_r1.slurm.chain import Link

ROOT = Path(__file__).resolve().parents[2]

# NeMo-Run's script asks for another start after any failure, by `scontrol requeue`.
_NO_SECOND_MISTAKE = (
    f"scontrol() {{ if [[ $1 == requeue && $exitcode == {EXIT_USER_ERROR} ]]; "
    f'then exit {EXIT_USER_ERROR}; fi; command scontrol "$@"; }}'
)


@contextmanager
def experiment(links: Sequence[Link], cluster: SlurmConfig, home: Path) -> Iterator[Any]:
    """NeMo-Run's experiment with one task a link, each after the one before it has succeeded.

    Args:
        home: where scripts and logs of all experiments are, on a disk that the nodes share. No
            part of it may be called nemo_run, which NeMo-Run replaces in its scripts.
    """
    run = _import_nemo_run(home)
    with run.Experiment(
        "megatron_r1", log_level="ERROR", enable_goodbye_message=False
    ) as nemo_experiment:
        previous: list[str] = []
        for link in links:
            what, where = script(link.overrides), executor(cluster)
            if cluster.rollout_nodes:
                what = [what, script(["serve", *link.overrides])]
                where = heterogeneous(cluster)
            task = nemo_experiment.add(
                what, executor=where, name=link.name, dependencies=previous or None
            )
            previous = [task]
        yield nemo_experiment


def heterogeneous(cluster: SlurmConfig) -> list[Any]:
    """Two components of one job: the trainer's nodes, and those that serve, with a task each."""
    serving = dataclasses.replace(cluster, nodes=cluster.rollout_nodes, tasks_per_node=1)
    grace = {"wait_time_for_group_job": 1, "monitor_group_job_wait_time": 5}
    return [executor(part, heterogeneous=True, **grace) for part in (cluster, serving)]


def executor(cluster: SlurmConfig, **more: Any) -> Any:
    """What Slurm is asked for."""
    import nemo_run as run

    flags = {"kill-on-invalid-dep": "yes", **cluster.sbatch}
    optional = {"gpus_per_node": cluster.gpus_per_node or None, "qos": cluster.qos}
    return run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        job_name_prefix="megatron_r1-",  # "" would become "<account>-<account>."
        nodes=cluster.nodes,
        ntasks_per_node=cluster.tasks_per_node,
        time=cluster.time,
        signal=f"USR1@{cluster.warn_s}",
        retries=cluster.max_restarts,
        packager=run.Packager(),
        tunnel=run.LocalTunnel(job_dir=""),
        container_image=cluster.container_image,
        container_mounts=list(cluster.container_mounts),
        env_vars={name: shlex.quote(value) for name, value in cluster.env.items()},
        setup_lines="\n".join([_NO_SECOND_MISTAKE, *cluster.setup]),
        # Theirs come first, and the last one holds.
        srun_args=["--label", f"--chdir={shlex.quote(str(ROOT))}", "--kill-on-bad-exit=0"],
        additional_parameters=flags,
        poll_estimated_start_time=False,
        **more,
        **{name: value for name, value in optional.items() if value is not None},
    )


def script(overrides: Sequence[str]) -> Any:
    """launch/step.sh with its overrides, which pass through string.Template and a shell."""
    import nemo_run as run

    return run.Script(
        path=shlex.quote(str(ROOT / "launch/step.sh")),
        entrypoint="bash",
        args=[shlex.quote(override).replace("$", "$$") for override in overrides],
    )


def render(nemo_experiment: Any) -> list[str]:
    """The sbatch scripts, in order; nothing is submitted."""
    nemo_experiment.dryrun(log=False, delete_exp_dir=False)
    directory = Path(nemo_experiment._exp_dir)
    return [(directory / f"{job.id}_sbatch.sh").read_text() for job in nemo_experiment.jobs]


def submit(nemo_experiment: Any) -> list[str]:
    """Returns the numbers of the jobs, in order."""
    nemo_experiment.run(detach=True)
    return [job.handle.rpartition("/")[2] for job in nemo_experiment.jobs]


def log_directories(nemo_experiment: Any) -> list[Path]:
    """Where each task's logs are: ``log-<job name>_<job>_<restart>.out``."""
    return [Path(nemo_experiment._exp_dir) / job.id for job in nemo_experiment.jobs]


def _import_nemo_run(home: Path) -> Any:
    """Seconds, and its home is read while it is imported."""
    os.environ.setdefault("NEMORUN_HOME", str(home.absolute()))
    try:
        import nemo_run
    except ImportError as error:
        raise ConfigError(
            f"NeMo-Run cannot be imported ({error}). Install it with `bash launch/setup_env.sh "
            "launch`, or submit launch/*.sh with sbatch, which does not need it"
        ) from error
    return nemo_run
