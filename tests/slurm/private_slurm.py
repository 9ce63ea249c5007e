"""A real Slurm of a test's own: munged, a controller and several nodes, all on this host.

Everything lives under one short directory (the name of a Unix socket ends at 108 bytes). Nodes n0,
n1, ... are slurmd processes that claim more cores than there are, and GPUs that are links to the
null device. Nothing of the system's configuration is read or written.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_r1.slurm.queue import is_over

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CPUS_PER_NODE = 8
GPUS_PER_NODE = 8
STIR_S = 1.0

CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for its old credential to expire: 120 s by default.
AuthInfo=socket={dir}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
# step.sh takes the ranks' port from the job's number: two clusters on one host should differ.
FirstJobId={first_job}
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmdLogFile={dir}/log/slurmd.%n.log
SlurmdSpoolDir={dir}/run/spool.%n
StateSaveLocation={dir}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
# Time for servers whose trainer is gone to end in order; 30 s by default.
KillWait=20
MessageTimeout=20
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
MinJobAge=300
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=cancels Nodes=ALL PriorityTier=1 GraceTime=60 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
"""


def missing() -> str | None:
    """Why there can be no private Slurm here; None where there can."""
    path = _path_with_daemons(os.environ)
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if not absent:
        return None
    return (
        f"needs {', '.join(absent)}: apt-get install slurm-wlm slurm-wlm-basic-plugins munge "
        "(Debian)"
    )


class PrivateSlurm:
    """A cluster between `start` and `stop`."""

    def __init__(self, *, num_nodes: int = 2) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="slurm"))
        self.nodes = [f"n{index}" for index in range(num_nodes)]
        self.env = _path_and_config(self.dir)

    def start(self) -> None:
        """Returns when every node is idle.

        Raises:
            RuntimeError: it is not so within 20 s; the message ends with the controller's log.
        """
        for name in ("etc", "log", "run", "state", "dev"):
            (self.dir / name).mkdir()
        self._write_configuration()
        self._run(
            *("munged", "--force", f"--key-file={self.dir}/etc/munge.key"),
            *(f"--socket={self.dir}/run/munge.socket", f"--pid-file={self.dir}/run/munged.pid"),
            *(f"--log-file={self.dir}/log/munged.log", f"--seed-file={self.dir}/run/munge.seed"),
        )
        self._run("slurmctld")
        for node in self.nodes:
            (self.dir / f"run/spool.{node}").mkdir()
            self._run("slurmd", "-N", node)
        deadline_s = time.monotonic() + 20
        while self._run("sinfo", "-h", "-N", "-p", "batch", "-o", "%T", check=False).split() != [
            "idle"
        ] * len(self.nodes):
            if time.monotonic() > deadline_s:
                log = (self.dir / "log/slurmctld.log").read_text()[-2000:]
                raise RuntimeError(f"the private Slurm did not come up:\n{log}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the jobs, then the daemons named by the pid files here, and delete the directory."""
        running = self._run("squeue", "-h", "-o", "%A", check=False).split()
        for job in running:
            self._run("scancel", "--signal=KILL", "--full", job, check=False)
            self._run("scancel", job, check=False)
        for job in running:
            with contextlib.suppress(TimeoutError):
                self.wait(job, timeout_s=15)
        for pid_file in sorted(self.dir.glob("run/*.pid"), key=_stopped_last):
            _end(int(pid_file.read_text()))
        shutil.rmtree(self.dir, ignore_errors=True)

    def submit(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """`sbatch` with these arguments. Returns the job's number."""
        return self._run("sbatch", "--parsable", *arguments, cwd=cwd, env=env).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; known for five minutes after the end."""
        shown = self._run("scontrol", "show", "job", "--oneliner", job)
        return dict(field.partition("=")[::2] for field in shown.split() if "=" in field)

    def wait(self, job: str, *, timeout_s: float) -> dict[str, str]:
        """Wait for a job's end, through its restarts."""
        self.wait_until(lambda: is_over(self.job(job)["JobState"]), timeout_s=timeout_s)
        return self.job(job)

    def wait_until(self, is_so: Callable[[], bool], *, timeout_s: float) -> None:
        """Poll until `is_so`; raises TimeoutError with the queue as it is then."""
        deadline_s, stirred_s = time.monotonic() + timeout_s, 0.0
        while not is_so():
            if time.monotonic() - stirred_s > STIR_S:
                self._stir()
                stirred_s = time.monotonic()
            if time.monotonic() > deadline_s:
                queue = self._run("squeue", "-t", "all", "-o", "%A %T %r", check=False)
                raise TimeoutError(f"not so after {timeout_s} s. The queue:\n{queue}")
            time.sleep(0.2)

    def signal(self, job: str, name: str) -> None:
        """Signal every process of every step, as Slurm does before a limit."""
        self._run("scancel", f"--signal={name}", job)

    def cancel(self, job: str) -> None:
        self._run("scancel", job)

    def _stir(self) -> None:
        """Change something, without changing anything. Heterogeneous jobs are planned only after
        something has changed: with nobody else on the cluster, that takes up to half a minute."""
        self._run("scontrol", "update", "PartitionName=batch", "State=UP", check=False)

    def _write_configuration(self) -> None:
        key = self.dir / "etc/munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for gpu in range(GPUS_PER_NODE):
            (self.dir / f"dev/nvidia{gpu}").symlink_to(os.devnull)
        last = GPUS_PER_NODE - 1
        (self.dir / "etc/gres.conf").write_text(
            f"AutoDetect=off\nName=gpu File={self.dir}/dev/nvidia[0-{last}]\n"
        )
        (self.dir / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\n")
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + len(self.nodes))
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={CPUS_PER_NODE} RealMemory=2000 Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        (self.dir / "etc/slurm.conf").write_text(
            CONFIGURATION.format(
                host=host,
                user=getpass.getuser(),
                dir=self.dir,
                controller_port=ports[0],
                first_job=random.randrange(1, 20_000),
                nodes="\n".join(nodes),
            )
        )

    def _run(
        self,
        *command: str,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            command, env={**self.env, **(env or {})}, cwd=cwd, capture_output=True, text=True
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout


def _path_and_config(directory: Path) -> dict[str, str]:
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    path = _path_with_daemons(os.environ)
    return {**outer, "PATH": path, "SLURM_CONF": f"{directory}/etc/slurm.conf"}


def _path_with_daemons(env: Mapping[str, str]) -> str:
    return f"{env.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for open_socket in sockets:
            open_socket.bind(("127.0.0.1", 0))
        return [open_socket.getsockname()[1] for open_socket in sockets]
    finally:
        for open_socket in sockets:
            open_socket.close()


def _stopped_last(pid_file: Path) -> int:
    order = ("slurmd", "slurmctld", "munged")
    return order.index(pid_file.name.partition(".")[0])


def _end(pid: int) -> None:
    """SIGTERM, and SIGKILL to what is still there after 5 s."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, end)
        deadline_s = time.monotonic() + 5
        while _runs(pid):
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.02)
        else:
            return


def _runs(pid: int) -> bool:
    """A zombie that waits for its parent has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
