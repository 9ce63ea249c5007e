"""Layouts by arithmetic against the policies that Megatron-Core builds for their ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_r1.checkpoint.sharded_keys import place_of
from megatron_r1.config.load import load_config
from megatron_r1.weights.boxes import Box, shape_of, slices
from megatron_r1.weights.names import Form, NameMapping, name_table
from megatron_r1.weights.trainer_layout import TrainerLayout
from tests.models.families import FAMILIES

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("ranks")]

WORKER = Path(__file__).with_name("layout_worker.py")

ODD = ["model.num_layers=5", "model.vocab_size=509"]
CASES = [
    (8, ["deepseek_v3", "model.num_mtp_layers=1"], "tensor=2 pipeline=2 expert=2 expert_tensor=2"),
    (8, ["deepseek_v3", "model.num_mtp_layers=1"], "tensor=4 pipeline=2 expert=4"),
    (8, ["moonlight"], "context=2 pipeline=2 expert=2 pipeline_layers=[1,4]"),
    (8, ["qwen3_moe"], "tensor=2 pipeline=2 virtual_pipeline=2 expert_tensor=4"),
    (4, ["qwen2.5"], "tensor=2 pipeline=2"),  # tied
    (4, ["llama3"], "tensor=2 context=2"),
]


def overrides(family: list[str], parallel: str) -> list[str]:
    degrees = [f"parallel.{degree}" for degree in parallel.split()]
    return [*FAMILIES[family[0]], *family[1:], *ODD, *degrees]


@pytest.fixture(scope="module")
def held():
    """What each rank of each case holds."""
    cases = [(size, overrides(family, parallel)) for size, family, parallel in CASES]
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(cases)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(row["case"], row["rank"]): row for row in rows}


def shards(mapping: NameMapping, boxes: list[Box]) -> list[Box]:
    """Where a rank's boxes of Hugging Face tensors lie in the Megatron parameter."""
    if mapping.form is not Form.rows:  # q, k and v by key group: as many groups, whole
        (_, *columns), rows = boxes[0], [box[0] for box in boxes]
        return [((sum(start for start, _ in rows), sum(stop for _, stop in rows)), *columns)]
    first, found = 0, []
    for box, shape in zip(boxes, mapping.shapes, strict=True):
        (start, stop), *columns = box
        found.append(((first + start, first + stop), *columns))
        first += shape[0]
    return found


@pytest.mark.parametrize("case", range(len(CASES)))
def test_each_rank_holds_what_megatron_gives_it(held, case):
    world_size, family, parallel = CASES[case]
    config = load_config(overrides(family, parallel))
    trainer = TrainerLayout(config.model, config.parallel, world_size)
    for rank in range(world_size):
        names, expected = set(), set()
        for mapping in name_table(config.model):
            holding, stage = trainer.holding(mapping), trainer.stage_of(rank)
            place = place_of(mapping.megatron, config.model)
            if stage not in holding.stages:
                continue
            number = holding.shard_of(rank)
            if number >= holding.split.parts:
                continue  # experts of others
            assert rank in holding.ranks(stage, number)
            names.add(trainer.local_name(mapping, stage))
            boxes = [slices(holding.split, shape)[number] for shape in mapping.shapes]
            for box in shards(mapping, boxes):
                offset, shape = tuple(start for start, _ in box), shape_of(box)
                if mapping.form is Form.vocab:  # there with its padding
                    shape = (-(-mapping.shapes[0][0] // holding.split.parts), *shape[1:])
                ones = (1,) * len(place.index)
                expected.add((place.key, (*place.index, *offset), (*ones, *shape)))
        row = held[case, rank]
        assert set(row["parameters"]) == names
        found = {(key, tuple(offset), tuple(shape)) for key, offset, shape in row["shards"]}
        assert found == expected
