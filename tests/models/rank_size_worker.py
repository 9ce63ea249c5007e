"""Sizes of some ranks of a layout, in a process of its own: it pretends to be each of them.

python rank_size_worker.py WORLD_SIZE RANK,RANK,... OVERRIDE...      one JSON object a line
"""

from __future__ import annotations

import json
import resource
import sys
import time


def main(world_size: int, ranks: list[int], overrides: list[str]) -> None:
    from megatron_r1.config.load import load_config
    from megatron_r1.models.rank_size import rank_size

    config = load_config([*overrides, "rollout.max_response_tokens=64", "model.init_from=base"])
    config.validate(world_size)
    for rank in ranks:
        start = time.process_time()
        size = rank_size(config.model, config.parallel, rank=rank, world_size=world_size)
        seconds = time.process_time() - start
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        share = [size.share.numerator, size.share.denominator]
        row = {"held": size.held, "share": share, "cpu_s": seconds, "peak_gb": peak_gb}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(rank) for rank in sys.argv[2].split(",")], sys.argv[3:])
