"""One rank of the tests of conversion and of checkpoints across layouts.

`main(DIR)` goes through all models and layouts of its world size. DIR/MODEL/megatron, which was
converted from DIR/MODEL/hub, is put into each layout and saved from there as DIR/MODEL/LAYOUT;
DIR/MODEL/hub is read as well, and must give the same weights. Then a model trains in a layout, is
saved and makes one more step; what was saved is loaded into the next layout, makes that step too,
and so on. What came of these steps is in DIR/MODEL/ring.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group
from tests.distributed.layout_worker import build, take_step

FP8 = "tiny_v3_fp8"
"""Its hub is as DeepSeek's own: FP8 with a scale per block, edges that are no whole block, and the
prediction layer. The others' are written by transformers, which leaves prediction layers out."""
LAYOUTS: dict[tuple[str, int], list[dict[str, Any]]] = {
    ("tiny_v3", 2): [{"expert": 2}, {"expert_tensor": 2}],
    ("tiny_v3", 4): [
        {"tensor": 4, "expert": 4},
        {"tensor": 2, "pipeline": 2, "expert": 2},
        {"pipeline": 2, "expert_tensor": 2},
        {"pipeline": 2, "virtual_pipeline": 2, "context": 2},
    ],
    (FP8, 2): [{"expert": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    (FP8, 4): [{"tensor": 2, "pipeline": 2, "expert_tensor": 2}],
    ("tiny_dense", 2): [{"tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    ("tiny_dense", 4): [{"tensor": 2, "pipeline": 2}, {"pipeline": 4}],
    ("llama3", 2): [{"tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    ("moonlight", 2): [
        {"expert": 2},
        {"tensor": 2, "expert_tensor": 2},
        {"pipeline": 2, "virtual_pipeline": 2},
    ],
    ("qwen3", 2): [{"tensor": 2}, {"pipeline": 2, "virtual_pipeline": 2}],
    ("qwen3_moe", 2): [
        {"expert": 2},
        {"tensor": 2, "expert_tensor": 2},
        {"pipeline": 2, "virtual_pipeline": 2},
    ],
}
"""By model and world size. Every family is saved under every kind of parallelism that splits
weights; context and data parallelism repeat them."""
VOCAB_SIZE = 509
"""What `build` makes it."""
RINGS = ("tiny_v3", "tiny_dense")
"""Models whose training goes on in another layout."""


def main(path: str) -> None:
    directory = Path(path)
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
        step = build(host, base_of(model_name), parallel, *own_settings(model_name))
        fill(step.policy, 7.0)
        load_hf_weights(step.policy, directory / "hub")
        from_hub = weights(step.policy)
        fill(step.policy, -7.0)  # so that a weight that is not read is another than the hub's
        load_weights(step.policy, directory / "megatron")
        from_megatron = weights(step.policy)
        assert len(from_hub) == len(from_megatron) > 0
        for name, expected in from_hub.items():
            assert torch.equal(from_megatron[name], expected), name
            assert expected.unique().numel() > 1, f"{name} was read by neither"
        store = CheckpointStore(directory / layout_name(parallel), keep=1, tokenizer_dir=None)
        store.keep_scales(directory / "megatron")
        store.save(LoopState(), step.policy, step.optimizer)


def base_of(model_name: str) -> str:
    """Of a family, or of a file of conf/model."""
    return "tiny_v3" if model_name == FP8 else model_name


def own_settings(model_name: str) -> list[str]:
    """What sets a model of these tests apart from its base."""
    if model_name == FP8:
        return ["model.hidden_size=192", "model.num_mtp_layers=1"]
    return ["model.num_mtp_layers=0"]


def fill(policy: Any, value: float) -> None:
    """Put one number everywhere that weights are read to."""
    for _, tensor in (*policy.named_parameters(), *expert_biases(policy)):
        tensor.data.fill_(value)


def weights(policy: Any) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds: parameters, without rows that pad the vocabulary, and the
    experts' biases."""
    found = {}
    for name, tensor in (*policy.named_parameters(), *expert_biases(policy)):
        rows = tensor.shape[0]
        if "word_embeddings" in name or "output_layer" in name:
            rows = min(rows, max(0, VOCAB_SIZE - policy.layout.tp.rank * rows))
        found[name] = tensor.detach()[:rows].clone()
    return found


def expert_biases(policy: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, b) for name, b in policy.named_buffers() if name.endswith("expert_bias")]


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
