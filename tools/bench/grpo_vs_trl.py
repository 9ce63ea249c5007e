"""GRPO steps of this project and of TRL's GRPOTrainer, in turn, on the same two cores.

    python tools/bench/grpo_vs_trl.py [--model tiny_dense] [--peers DIR] [--rounds 6] [--steps 2]

Both sides run the same model (exported by `checkpoint/hf_export.py`), the same prompts, group size,
response length, reward and dtype: every response has its full length, there is one update for each
generation, and both compute the reference's log-probabilities (neither with --kl-beta 0). Each side
is there twice, as one process with two threads and as two with one; all start once, are warmed up,
and then take turns, sleeping while another works. Printed are generated tokens a second of wall
time and of CPU time, and the ratio of the two sides at their best, round by round. CPU time, which
other work on the machine hardly changes, includes threads that spin while they wait for each other:
processes of one thread compare best.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # a clone that is not installed

import psutil  # noqa: E402
from grpo_rates import best, part_shares, rates, ratios, spread  # noqa: E402
from grpo_workload import Workload  # noqa: E402

from megatron_r1.command import run_command  # noqa: E402
from megatron_r1.errors import UserError  # noqa: E402
from megatron_r1.telemetry.table import render_table  # noqa: E402

NUM_CORES = 2
PEERS = "MEGATRON_R1_PEERS"
INSTALL = (
    "pip install --no-deps --target DIR trl==1.16.0 accelerate datasets dill multiprocess pandas "
    f"pyarrow xxhash, then --peers DIR or {PEERS}=DIR"
)
PARTS = ("decoding", "log-probabilities", "update")
RATES = (*PARTS, "whole step", "CPU")
"""What there are tokens a second of; CPU: of a whole step."""


@dataclass
class Side:
    """One way to run one program: its processes, and the turns they have had."""

    program: str
    script: str
    num_processes: int
    directory: Path
    python_path: Sequence[Path]
    processes: list[subprocess.Popen] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)
    """Of each turn: generated tokens, and seconds by the names of RATES."""

    @property
    def num_threads(self) -> int:
        return NUM_CORES // self.num_processes

    @property
    def name(self) -> str:
        return f"{self.program}, {self.num_processes} x {self.num_threads}"

    def start(self) -> None:
        """Start the processes and wait until they are ready to work."""
        port = free_port()
        for rank in range(self.num_processes):
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, self.python_path)),
                "OMP_NUM_THREADS": str(self.num_threads),
                "TOKENIZERS_PARALLELISM": "false",
            }
            if self.num_processes > 1:
                env |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.num_processes),
                    "LOCAL_WORLD_SIZE": str(self.num_processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            with self._log(rank).open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, str(HERE / self.script), str(self.directory)],
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self.processes.append(process)
        self._answer()

    def turn(self, num_steps: int) -> dict[str, float]:
        """Have it make some steps. Returns their sums, by the first process's account."""
        started_s = self._cpu_s()
        for process in self.processes:
            process.stdin.write(f"{num_steps}\n")
            process.stdin.flush()
        steps = self._answer()
        sums = {name: sum(step[name] for step in steps) for name in steps[0]}
        return {**sums, "CPU": self._cpu_s() - started_s}

    def stop(self) -> None:
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _answer(self) -> list[dict[str, float]]:
        answers = [process.stdout.readline() for process in self.processes]
        if not all(answers):
            logs = (self._log(rank) for rank in range(self.num_processes))
            tails = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs)
            raise RuntimeError(f"{self.name} ended early\n{tails}")
        return json.loads(answers[0])

    def _cpu_s(self) -> float:
        """CPU seconds so far of its processes and their workers."""
        own = [psutil.Process(process.pid) for process in self.processes]
        family = [member for each in own for member in (each, *each.children(recursive=True))]
        times = [member.cpu_times() for member in family]
        return sum(each.user + each.system for each in times)

    def _log(self, rank: int) -> Path:
        return self.directory / f"{self.script}.{self.num_processes}.{rank}.log"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny_dense", help="a file of conf/model")
    parser.add_argument("--peers", type=Path, help=f"where TRL is; else {PEERS}, else installed")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16, help="rollouts a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="length of every response")
    parser.add_argument("--rows", type=int, default=64, help="sequences of a micro-batch")
    parser.add_argument("--kl-beta", type=float, default=0.001, help="0: no reference")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="GRPO steps of a turn")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of each side")
    arguments = parser.parse_args()
    return run_command(lambda: compare(arguments))


def compare(arguments: argparse.Namespace) -> None:
    """Start both sides, measure them, print the tables.

    Raises:
        UserError: TRL is not there.
    """
    peers = find_trl(arguments.peers)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    workload = Workload(
        model=arguments.model,
        num_prompts=arguments.prompts,
        samples_per_prompt=arguments.samples,
        response_tokens=arguments.tokens,
        rows_per_microbatch=arguments.rows,
        kl_beta=arguments.kl_beta,
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        workload.save(directory)
        root = HERE.parents[1]
        # By another name: dill, with which `datasets` names its tables, takes modules by reference
        # only if they lie in a directory of this name.
        their_path = directory / "site-packages"
        if peers is not None:
            their_path.symlink_to(peers.resolve())
        sides = [
            Side(program, script, num_processes, directory, python_path)
            for num_processes in arguments.processes
            for program, script, python_path in (
                ("ours", "grpo_side_ours.py", [root]),
                ("TRL", "grpo_side_trl.py", [root, their_path]),
            )
        ]
        measure(sides, workload, arguments.rounds, arguments.steps)
    report(sides, workload, peers)


def find_trl(directory: Path | None) -> Path | None:
    """The directory that TRL is in; None where it is installed."""
    if directory is None and os.environ.get(PEERS):
        directory = Path(os.environ[PEERS])
    if directory is None and importlib.util.find_spec("trl") is not None:
        return None
    if directory is None or not (directory / "trl").is_dir():
        where = "installed" if directory is None else f"in {directory}"
        raise UserError(f"TRL is not {where}: {INSTALL}")
    return directory


def measure(sides: list[Side], workload: Workload, num_rounds: int, num_steps: int) -> None:
    try:
        for side in sides:
            side.start()
            side.turn(1)  # warms up
        for index in range(num_rounds):
            # Forwards and backwards, so that none always follows the same neighbour.
            for side in sides if index % 2 == 0 else sides[::-1]:
                turn = side.turn(num_steps)
                assert turn["tokens"] == num_steps * workload.num_tokens, turn
                side.rounds.append(turn)
    finally:
        for side in sides:
            side.stop()


def report(sides: list[Side], workload: Workload, peers: Path | None) -> None:
    print(
        f"{describe_machine()}\n{describe_versions(peers)}\n"
        f"{workload.model}: {workload.num_prompts} prompts x {workload.samples_per_prompt} "
        f"rollouts x {workload.response_tokens} tokens, micro-batches of "
        f"{workload.rows_per_microbatch} rows, kl_beta {workload.kl_beta}\n\n"
        f"Median over {len(sides[0].rounds)} rounds, generated tokens a second:\n"
    )
    parts = [part for part in RATES if all(side.rounds[0][part] > 0 for side in sides)]
    rows = [
        [side.name, *(f"{statistics.median(rates(side.rounds, part)):,.0f}" for part in parts)]
        for side in sides
    ]
    print(render_table(["side, processes x threads", *parts], rows))

    of_program = {
        program: {side.name: side.rounds for side in sides if side.program == program}
        for program in ("ours", "TRL")
    }
    ours, theirs = (best(by_name) for by_name in of_program.values())
    print(f"\n{ours} against {theirs}, ratio of tokens a second:\n")
    ours_rounds, their_rounds = of_program["ours"][ours], of_program["TRL"][theirs]
    rows = [
        [part, *(f"{ratio:.2f}" for ratio in spread(ratios(ours_rounds, their_rounds, part)))]
        for part in parts
    ]
    print(render_table(["part", "min", "median", "max"], rows))

    print("\nShare of a whole step:\n")
    rows = [
        [name, *(f"{share:.0%}" for share in part_shares(rounds, PARTS))]
        for name, rounds in ((ours, ours_rounds), (theirs, their_rounds))
    ]
    print(render_table(["side", *PARTS, "everything else"], rows))


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{NUM_CORES} cores, {' and '.join(sorted(models)) or platform.machine()}"


def describe_versions(peers: Path | None) -> str:
    searched = sys.path if peers is None else [str(peers), *sys.path]
    versions = {each.name: each.version for each in metadata.distributions(path=searched[::-1])}
    names = ("torch", "transformers", "megatron-core", "trl", "accelerate")
    packages = ", ".join(f"{name} {versions[name]}" for name in names)
    return f"Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    sys.exit(main())
