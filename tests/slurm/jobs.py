"""What runs of a submitted job, and what it said last."""

from __future__ import annotations

from pathlib import Path

import psutil

PROGRAMS = "bin/python"


def processes_of(job: str, words: str = PROGRAMS) -> list[psutil.Process]:
    """The oldest ones first of those with these words in their command. A process that one of them
    started, and that still is its child, is not listed: a rank's forks have the rank's command."""
    found = {}
    for process in psutil.process_iter():
        try:
            env, command = process.environ(), " ".join(process.cmdline())
            if env.get("SLURM_JOB_ID") == job and words in command:
                found[process.pid] = (process.create_time(), process.ppid(), process)
        except psutil.Error:
            continue
    roots = [entry for entry in found.values() if entry[1] not in found]
    return [process for *_, process in sorted(roots, key=lambda entry: entry[0])]


def survivors(job: str, restart: int) -> list[str]:
    """Commands of programs of starts before `restart`, which Slurm does not know of any more."""
    left = []
    for process in processes_of(job):
        try:
            if int(process.environ().get("SLURM_RESTART_COUNT", "0")) < restart:
                left.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return left


def holders(directory: Path) -> list[str]:
    """Commands of processes that have a file below a directory open, such as a server's log: some
    change their title, and their environment with it."""
    held = []
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).is_relative_to(directory) for file in process.open_files()):
                held.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return held


def last_words(directory: Path, *, lines: int = 40) -> str:
    """The ends of the newest files that a job wrote below a directory, on about a page: what its
    batch script said, then its ranks, without lines of progress and of the configuration."""
    found = [*directory.rglob("*.log"), *directory.rglob("log-*.out")]
    logs = sorted(found, key=lambda path: path.stat().st_mtime)
    batches = [(path, path.read_text().splitlines()[-8:]) for path in directory.glob("*.out")]
    ranks = [(path, _told(path)[-lines:]) for path in logs[-2:]]
    return "\n".join(
        line[:200]
        for path, told in [*batches, *ranks]
        for line in (f"=== {path.relative_to(directory)}", *told)
    )


def _told(log: Path) -> list[str]:
    """Behind the number of its task, each line says something."""
    return [
        line
        for line in log.read_text(errors="replace").splitlines()
        if line.partition(": ")[2].strip() and " left " not in line
    ]
