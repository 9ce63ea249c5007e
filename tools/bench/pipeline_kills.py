"""Kill a pipeline at random moments, start it again each time, and let it end.

    python tools/bench/pipeline_kills.py [--kills 10] [--seed 1] [overrides]

SIGKILL falls after --between processor seconds of a start, drawn anew each time: the same moments
of the work on a busy machine. Compare the table with that of a run in one start:

    cmp runs/whole/table.json runs/killed/table.json
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

_POLL_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--between", type=float, nargs=2, default=(20, 120), help="seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments, overrides = parser.parse_known_args()
    command = [sys.executable, "-m", "megatron_r1.train", "experiment=r1_pipeline_tiny", *overrides]
    moments = random.Random(arguments.seed)
    begun_s = time.monotonic()
    for start in range(arguments.kills):
        after_s = moments.uniform(*arguments.between)
        code = run(command, after_s)
        if code != -signal.SIGKILL:
            print(f"start {start} ended by itself, with exit code {code}, before its kill")
            return code
        print(f"killed after {after_s:.0f} processor seconds", flush=True)
    code = run(command, None)
    print(f"{arguments.kills} kills, {time.monotonic() - begun_s:.0f} s, exit code {code}")
    return code


def run(command: list[str], after_s: float | None) -> int:
    """The exit code; that of a kill after so many processor seconds."""
    process = subprocess.Popen(command)
    while process.poll() is None:
        if after_s is not None and processor_s(process.pid) > after_s:
            process.kill()
            break
        time.sleep(_POLL_S)
    return process.wait()


def processor_s(pid: int) -> float:
    """What a process and those of its children that have ended have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


if __name__ == "__main__":
    sys.exit(main())
