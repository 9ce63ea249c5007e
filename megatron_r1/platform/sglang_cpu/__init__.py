"""What stock SGLang lacks to serve on a machine without CUDA. On a GPU nothing here is used.

SGLang's wheel needs no edit: it has a path in plain torch for nearly everything. Three libraries
that it imports by name alone are stood in for, and its own plugin interface is given the few
functions that the plain path lacks. Both lie in `site/`, which is put on the PYTHONPATH of a server
and of nothing else.

    site/megatron_r1_sglang_cpu.py   the plugin; start here
    site/import_only.py              modules that can be imported and not used: torchvision, triton
    site/sgl_kernel.py               its names, and the one function of it that is called
"""

from __future__ import annotations

import os
from pathlib import Path

SITE = Path(__file__).parent / "site"
PLUGIN_LOADED = "megatron_r1: SGLang's CPU plugin is in place"
"""A server's log holds this line. SGLang itself goes on when a plugin is not found."""

SERVER_ARGS = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    "grammar-backend": "none",
    "disable-cuda-graph": True,
    "mem-fraction-static": 0.3,
}


def environment(num_ranks: int) -> dict[str, str]:
    """Variables that a server of `num_ranks` ranks needs beside those of this process."""
    path = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(path),
        "SGLANG_USE_CPU_ENGINE": "1",  # --device cpu alone is not enough
        "SGLANG_CPU_OMP_THREADS_BIND": _cores_by_rank(num_ranks),
        # Else the first request to a mixture of experts waits for a compiler.
        "TORCHDYNAMO_DISABLE": "1",
        # Threads that spin while they wait take the cores from the other processes.
        "OMP_WAIT_POLICY": "passive",
    }


def _cores_by_rank(num_ranks: int) -> str:
    """This process's cores dealt to the ranks, such as ``0,1|2,3``; ranks share where they must."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // num_ranks)
    firsts = [rank * share % len(cores) for rank in range(num_ranks)]
    return "|".join(",".join(map(str, cores[first : first + share])) for first in firsts)
