"""`python -m megatron_r1.launch [options] [overrides]`: submit stages, wait, tell the truth.

python -m megatron_r1.launch stage=r1_zero cluster=slurm cluster.partition=h100 [overrides]
    --dry-run     print the sbatch scripts, submit nothing
    --detach      submit, print the jobs' numbers, return

stage=a,b,c is a chain: each job starts when the one before it has succeeded, and none does after
one that failed. cluster=local runs the same stages here, one process each. The exit code is 0 when
every stage succeeded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from megatron_r1.config.cluster import SlurmConfig
from megatron_r1.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from megatron_r1.slurm import nemo, queue
from megatron_r1.slurm.chain import Link, plan_chain
from megatron_r1.slurm.follow import LogFollower

POLL_S = 2.0
EXIT_STAGE_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="megatron_r1.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="print the scripts alone")
    parser.add_argument("--detach", action="store_true", help="do not wait for the jobs")
    options, overrides = parser.parse_known_args(arguments)
    try:
        links = plan_chain(overrides)
        cluster = links[0].config.cluster
        if not isinstance(cluster, SlurmConfig):
            return run_here(links, is_dry=options.dry_run)
        for link in links:
            link.config.validate(cluster.world_size)
        return run_on_slurm(links, cluster, is_dry=options.dry_run, detach=options.detach)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def run_here(links: Sequence[Link], *, is_dry: bool) -> int:
    """One stage after the other, each as one process; stops at the first that fails.

    Returns: the exit code of the last one that ran.
    """
    for link in links:
        command = [sys.executable, "-m", "megatron_r1.train", *link.overrides]
        print(subprocess.list2cmdline(command), flush=True)
        if not is_dry and (code := subprocess.run(command).returncode):
            return code
    return EXIT_DONE


def run_on_slurm(links: Sequence[Link], cluster: SlurmConfig, *, is_dry: bool, detach: bool) -> int:
    """Submit a chain. Returns 0 when every job of it completed, or was submitted to be left."""
    home = Path(links[0].config.run.root) / "jobs"
    # What NeMo-Run has to say is not what was asked for.
    with redirect_stdout(sys.stderr), nemo.experiment(links, cluster, home) as experiment:
        if is_dry:
            scripts = nemo.render(experiment)
        else:
            jobs = nemo.submit(experiment)
            directories = nemo.log_directories(experiment)
    if is_dry:
        print("\n".join(scripts))
        return EXIT_DONE
    for link, job, directory in zip(links, jobs, directories, strict=True):
        print(f"{link.name}: job {job}, logs in {directory}", flush=True)
    if detach:
        return EXIT_DONE
    logs = LogFollower(directories, "log-*.out", sys.stdout)
    states = queue.wait(jobs, every_s=POLL_S, on_poll=logs.copy_new)
    logs.copy_new()
    for link, job, state in zip(links, jobs, states, strict=True):
        print(f"{link.name}: job {job} {state}", flush=True)
    is_done = all(state == queue.COMPLETED for state in states)
    return EXIT_DONE if is_done else EXIT_STAGE_FAILED


if __name__ == "__main__":
    sys.exit(main())
