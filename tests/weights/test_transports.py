"""Weights in every way into a real SGLang server, from every kind of layout.

CI goes through some pairings of one family. MEGATRON_R1_WIRE=20 goes through all families, ways,
engine layouts and trainer layouts, with that many publishes each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.served import needs_sglang

WORKER = Path(__file__).with_name("wire_worker.py")
NUM_PUBLISHES = int(os.environ.get("MEGATRON_R1_WIRE", "0"))

pytestmark = [*needs_sglang, pytest.mark.timeout(600 + 600 * NUM_PUBLISHES)]

# float32 sums in another order; a token of random weights has a log-probability around -6.
MAX_GAP = 1e-4

LAYOUTS: dict[int, list[dict[str, int]]] = {
    1: [{}],
    2: [{}, {"tensor": 2}, {"pipeline": 2}, {"expert": 2}],
    4: [{"pipeline": 2, "expert": 2}],
}
WAYS = ("directory", "collective", "shared_memory")
ENGINES = {
    "tp1": [],
    "tp2": ["rollout.tensor=2"],
    "tp2_ep2": ["rollout.tensor=2", "rollout.expert=2"],
}


Round = tuple[str, dict[str, int], str | None]
"""Way, trainer's layout, and a signal that strikes the server amid the last publish."""


def run(
    family: str,
    engine: list[str],
    world_size: int,
    rounds: list[Round],
    tokenizer: Any,
    directory: Path,
    num_publishes: int,
) -> list[dict[str, Any]]:
    """Publish to one server; see `wire_worker.py`."""
    case = {
        "family": family,
        "overrides": [
            "model.vocab_size=512",
            f"rollout.bucket_bytes={2**17}",
            "rollout.publish_timeout_s=120",
            "rollout.health_timeout_s=20",
            # SGLang gives every layer of this family experts.
            *(["model.num_dense_layers=0"] if family == "qwen3_moe" else []),
            *engine,
        ],
        "rounds": rounds,
        "seeds": list(range(num_publishes)),
        "tokenizer": str(tokenizer.path),
        "root": str(directory),
        "results": str(directory / "results.json"),
    }
    file = directory / "case.json"
    file.write_text(json.dumps(case))
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, str(WORKER), str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280 + 590 * num_publishes,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    results = json.loads((directory / "results.json").read_text())
    for result in results:
        print(json.dumps(result))
    return results


def check(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["gap"] < MAX_GAP, result
        assert result["same_checksums"], result
        assert result["left_in_memory"] == 0, result
        assert result["metrics"]["publish/attempts"] == 1 + (result["strike"] is not None), result
    for result in results:
        if result["way"] == "directory":
            continue
        # Beside buckets, what ranks tell each other: a few hundred bytes.
        assert 0 < result["peak_bytes"] <= result["peak_bound"] + 4096, result


def test_what_two_ranks_publish_is_what_the_engine_holds(tokenizer, tmp_path):
    """Also when the engine dies or freezes with half of the weights in it: it is started anew, and
    holds what was published."""
    rounds: list[Round] = [
        ("collective", {"tensor": 2}, None),
        ("collective", {"expert": 2}, None),
        ("shared_memory", {"pipeline": 2}, "SIGKILL"),
        ("collective", {"pipeline": 2}, "SIGKILL"),
        ("collective", {"pipeline": 2}, "SIGSTOP"),
    ]
    results = run("deepseek_v3", [], 2, rounds, tokenizer, tmp_path, 2)
    assert [(result["way"], result["layout"], result["strike"]) for result in results] == rounds
    check(results)


def test_an_engine_of_two_ranks_holds_what_is_published(tokenizer, tmp_path):
    rounds: list[Round] = [("collective", {}, None), ("shared_memory", {}, None)]
    check(run("deepseek_v3", ENGINES["tp2_ep2"], 1, rounds, tokenizer, tmp_path, 2))


@pytest.mark.skipif(not NUM_PUBLISHES, reason="hours: MEGATRON_R1_WIRE=20")
@pytest.mark.parametrize("world_size", LAYOUTS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe", "qwen2.5"])
def test_every_pair_of_layouts(family, engine, world_size, tokenizer, tmp_path):
    dense = family == "qwen2.5"
    if dense and ENGINES[engine][1:]:
        pytest.skip("a dense model has no experts to spread")
    layouts = [layout for layout in LAYOUTS[world_size] if not (dense and "expert" in layout)]
    if not layouts:
        pytest.skip("a dense model has no experts to spread")
    rounds: list[Round] = [(way, layout, None) for way in WAYS for layout in layouts]
    # What the server holds is compared with the first round's files here, at every publish.
    settings = ["rollout.start_files_every=0", "algo.rollout_correction_cap=2.0"]
    settings += ENGINES[engine]
    check(run(family, settings, world_size, rounds, tokenizer, tmp_path, NUM_PUBLISHES))
