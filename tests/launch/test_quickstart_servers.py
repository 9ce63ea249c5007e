"""The quickstart with a real SGLang server, which samples one phase ahead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_r1.telemetry.metrics import read_metrics
from tests.launch.test_quickstart import finish, quickstart
from tests.rollout.served import needs_sglang

pytestmark = [*needs_sglang, pytest.mark.timeout(900)]

SETTINGS = [
    "rollout=sglang",
    "rollout.weights_by=collective",
    "rollout.steps_ahead=1",
    "rollout.start_files_every=0",
    "algo=grpo_stable",
    "algo.drop_zero_std_groups=false",
    "stage.zero.num_steps=6",
    "stage.zero.prompts_per_step=4",
]


def test_two_ranks_train_on_what_a_server_samples_ahead(tmp_path: Path):
    code, output = finish(quickstart(*SETTINGS, f"run.root={tmp_path}"), timeout_s=800)
    assert code == 0, output[-6000:]
    run = tmp_path / "quickstart"
    rows = list(read_metrics(run / "r1_zero/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # A phase's own numbers stand in the row of its first update. Three phases of two updates: the
    # first is sampled and awaited, what begins during the others' training is older by two.
    phases = [row for row in rows if "rollout/stale_token_frac" in row]
    assert [row["step"] for row in phases] == [1, 3, 5]
    stale = [row["rollout/stale_token_frac"] for row in phases]
    assert stale[0] == 0 and 0 < stale[1] <= 1 and 0 < stale[2] <= 1
    assert [row["rollout/staleness_updates_mean"] for row in phases] == [2 * s for s in stale]
    # The same weights, in float32: only routing that is replayed, sums in another order.
    assert rows[0]["mismatch/logprob_abs_max"] < 1e-4
    written = [
        json.loads(line)
        for path in sorted((run / "r1_zero/rollouts").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for record in written:
        spans = record["version_spans"]
        assert [spans[0][1], spans[-1][2]] == [0, record["tokens"]]
        assert all(one[2] == other[1] for one, other in zip(spans, spans[1:], strict=False))
