"""Whether a job that Slurm starts again and again gets anywhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from megatron_r1.errors import NoProgressError

RESTARTS_FILE = "restarts.jsonl"
_FILES = {"data": "**/data/**/*.jsonl", "results": "**/eval/**/*.json*"}


def check_progress(run_dir: Path, env: Mapping[str, str], *, allowed: int) -> None:
    """Compare what the run has made with what the job's earlier restarts found.

    Every rank comes to the same conclusion by itself, before anything that could crash; rank 0
    keeps the record. The first start of a job is not one of them.

    Raises:
        NoProgressError: this restart and the `allowed` - 1 before it found the same.
    """
    restart = int(env.get("SLURM_RESTART_COUNT", "0"))
    if restart == 0:
        return
    job, found = env["SLURM_JOB_ID"], made_so_far(run_dir)
    record = run_dir / RESTARTS_FILE
    earlier = [row for row in _read(record) if row["job"] == job and row["restart"] < restart]
    if env.get("RANK", "0") == "0":
        run_dir.mkdir(parents=True, exist_ok=True)
        with record.open("a") as file:
            file.write(json.dumps({"job": job, "restart": restart, "found": found}) + "\n")
    in_vain = 1
    for row in reversed(earlier):
        if row["found"] != found:
            break
        in_vain += 1
    if in_vain >= allowed:
        newest = ", ".join(f"{where}: {name}" for where, name in found.items()) or "nothing"
        raise NoProgressError(
            f"{in_vain} restarts of job {job} in a row found no newer checkpoint, sample or "
            f"result ({newest}) in {run_dir}. The logs of the restarts say why; then submit "
            "it again, or raise cluster.restarts_without_progress"
        )


def made_so_far(run_dir: Path) -> dict[str, str]:
    """Where `latest` stands in each loop of the run; how much there is of what stages make without
    a checkpoint: samples, replies of a judge or a teacher, results of an evaluation."""
    found = {
        str(pointer.parent.parent.relative_to(run_dir)): pointer.read_text().strip()
        for pointer in sorted(run_dir.glob("**/checkpoints/latest"))
    }
    for what, pattern in _FILES.items():
        sizes = [path.stat().st_size for path in run_dir.glob(pattern)]
        if sizes:
            found[what] = f"{len(sizes)} files, {sum(sizes)} bytes"
    return found


def _read(record: Path) -> list[dict]:
    if not record.is_file():
        return []
    rows = []
    for line in record.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # torn by a kill
    return rows


def name_of_start() -> str:
    """Of one start of a run, for what is kept of each: Slurm's job and restart, or the time."""
    if "SLURM_JOB_ID" in os.environ:
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        return f"{os.environ['SLURM_JOB_ID']}-restart{restart}"
    return time.strftime("%Y%m%d-%H%M%S")
