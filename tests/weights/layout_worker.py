"""What ranks of real policies hold, in a process of its own: it pretends to be each of them.

python layout_worker.py CASES      CASES: JSON, a list of [world size, [override, ...]]

One JSON object a line for each case and rank: `parameters`, the names of Policy.named_parameters
and of expert biases, and `shards`, [key, offset, shape] of what a distributed checkpoint saves.
"""

from __future__ import annotations

import json
import sys


def main(cases: list[tuple[int, list[str]]]) -> None:
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    from megatron_r1.config.load import load_config
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.fake_world import fake_world
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.platform.host import Host, prepare

    prepare()
    host = Host(device=torch.device("meta"), backend="fake")
    for number, (world_size, overrides) in enumerate(cases):
        config = load_config([*overrides, "rollout.max_response_tokens=64", "model.init_from=base"])
        config.validate(world_size)
        for rank in range(world_size):
            with fake_world(rank=rank, world_size=world_size):
                layout = enter_layout(config.parallel, seed=0)
                policy = Policy(config.model, layout, config.precision, host, seed=0)
                names = [name for name, _ in policy.named_parameters()]
                names += [name for name, _ in policy.named_buffers() if "expert_bias" in name]
                shards = []
                for chunk in policy.sharded_state_dict().values():
                    for saved in chunk.values():
                        built = saved.build() if isinstance(saved, ShardedTensorFactory) else saved
                        for shard in [built] if isinstance(built, ShardedTensor) else built:
                            if isinstance(shard, ShardedTensor):
                                ones = (1,) * shard.prepend_axis_num
                                shape = (*ones, *shard.local_shape)
                                shards.append([shard.key, shard.global_offset, shape])
                row = {"case": number, "rank": rank, "parameters": names, "shards": shards}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
