"""One rank of the tests of conversion and of checkpoints across layouts.

    torchrun ... conversion_worker.py DIR

goes through all models and layouts of its world size. DIR/MODEL/megatron, which was converted from
DIR/MODEL/hub, is put into each layout and saved from there as DIR/MODEL/LAYOUT; DIR/MODEL/hub is
read as well, and must give the same weights. Then a model trains in a layout, is saved and makes
one more step; what was saved is loaded into the next layout, makes that step too, and so on. What
came of these steps is in DIR/MODEL/ring.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from tests.distributed.layout_worker import build, take_step

NO_MTP = "model.num_mtp_layers=0"
"""transformers, which writes the hub's side, writes none."""
LAYOUTS: dict[tuple[str, int], list[dict[str, Any]]] = {
    ("tiny_v3", 2): [{"expert": 2}, {"expert_tensor": 2}],
    ("tiny_v3", 4): [
        {"tensor": 4, "expert": 4},
        {"tensor": 2, "pipeline": 2, "expert": 2},
        {"pipeline": 2, "expert_tensor": 2},
        {"pipeline": 2, "virtual_pipeline": 2, "context": 2},
    ],
    ("tiny_dense", 2): [{"tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    ("tiny_dense", 4): [{"tensor": 2, "pipeline": 2}, {"pipeline": 4}],
    ("llama3", 2): [{"tensor": 2}],
    ("moonlight", 2): [{"expert_tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    ("qwen3", 2): [{"tensor": 2}],
    ("qwen3_moe", 2): [{"expert": 2}, {"tensor": 2, "expert_tensor": 2}],
}
"""By model and world size."""
RINGS = ("tiny_v3", "tiny_dense")
"""Models whose training goes on in another layout."""


def main(directory: Path) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=10)
    for (model_name, world_size), layouts in LAYOUTS.items():
        if world_size == dist.get_world_size():
            round_trip(host, directory / model_name, model_name, layouts)
            if model_name in RINGS:
                ring(host, directory / model_name, model_name, layouts)
    stop_process_group()


def round_trip(host: Host, directory: Path, model_name: str, layouts: list[dict]) -> None:
    from megatron_r1.checkpoint.hf_load import load_hf_weights
    from megatron_r1.checkpoint.store import CheckpointStore, LoopState, load_weights

    for parallel in layouts:
        step = build(host, model_name, parallel, NO_MTP)
        load_hf_weights(step.policy, directory / "hub")
        from_hub = [p.clone() for _, p in step.policy.named_parameters()]
        load_weights(step.policy, directory / "megatron")
        for (name, parameter), expected in zip(
            step.policy.named_parameters(), from_hub, strict=True
        ):
            rows = expected.shape[0]
            if "embedding" in name or "output_layer" in name:  # padding is nobody's
                rows = min(rows, max(0, 509 - step.policy.layout.tp.rank * rows))
            assert torch.equal(parameter[:rows], expected[:rows]), name
        store = CheckpointStore(directory / layout_name(parallel), keep=1, tokenizer_dir=None)
        store.save(LoopState(), step.policy, step.optimizer)


def ring(host: Host, directory: Path, model_name: str, layouts: list[dict]) -> None:
    """The last layout's checkpoint goes back into the first."""
    from megatron_r1.checkpoint.store import CheckpointStore, LoopState

    store = CheckpointStore(directory, keep=1, tokenizer_dir=None)
    step = build(host, model_name, layouts[0])
    take_step(step)
    take_step(step)
    results = []
    for number, parallel in enumerate([*layouts[1:], layouts[0]]):
        path = store.save(LoopState(step=number), step.policy, step.optimizer)
        expected = take_step(step)
        step = build(host, model_name, parallel)
        assert store.load(path, step.policy, step.optimizer) == LoopState(step=number)
        found = take_step(step)
        results.append({"into": layout_name(parallel), "expected": expected, "found": found})
    if dist.get_rank() == 0:
        (directory / "ring.json").write_text(json.dumps(results))


def layout_name(parallel: dict[str, Any]) -> str:
    return "_".join(f"{name}{size}" for name, size in parallel.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
