"""What a user can get wrong ends with exit code 2 and one message that says what to do.

Each case is the real command in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.rewards.judge_server import Reply, judge_server

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]

SMALL = [
    "data=chain_sum",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "data.corpus_frac=0.4",
    "data.max_prompt_tokens=64",
    "rollout.max_response_tokens=16",
    "telemetry.tensorboard=false",
    "stage.checkpoint_every_steps=1",
]
BASE = ["stage=tiny_base", "stage.num_steps=1", "stage.sequences_per_step=4", *SMALL]
BASE += ["stage.num_documents=400"]
ZERO = ["stage=r1_zero", "stage.num_steps=1", "stage.steps_per_phase=1", *SMALL]
ZERO += ["stage.prompts_per_step=1", "stage.rollouts_per_prompt=2"]


def train(
    *overrides: str, program: str = "megatron_r1.train", **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", program, *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def refused(*overrides: str, **environment: str) -> str:
    """The one message of a run that must end with exit code 2."""
    done = train(*overrides, **environment)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if "Error: " in line]
    assert len(messages) == 1, done.stderr
    return done.stderr[done.stderr.index(messages[0]) :]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base model that has made one step."""
    root = tmp_path_factory.mktemp("base")
    done = train(*BASE, f"run.root={root}", "run.name=base")
    assert done.returncode == 0, done.stderr[-4000:]
    return root / "base"


@pytest.fixture
def zero(base, tmp_path) -> list[str]:
    """Overrides of an R1-Zero run from it that works."""
    return [*ZERO, f"model.init_from={base}", f"run.root={tmp_path}"]


def test_the_run_that_the_others_spoil_works(zero, tmp_path):
    done = train(*zero)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "r1_zero/checkpoints/latest").read_text() == "step_000001\n"


def test_unknown_override():
    message = refused("rolout.temperature=0.7")
    assert "rolout" in message and "conf/" in message


def test_wrong_type():
    message = refused("stage.num_steps=many")
    assert "stage.num_steps" in message and "many" in message


def test_degrees_that_do_not_divide_the_world():
    message = refused("parallel.tensor=2", "rollout.max_response_tokens=64", WORLD_SIZE="3")
    assert "2 * 1 * 1 = 2 does not divide the world size 3" in message
    assert "Choose a product out of 1, 3" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be had here")
def test_an_optimizer_that_a_later_stage_cannot_have(tmp_path):
    """The base has one of its own and would be trained, for 700 steps, before R1-Zero began."""
    setting = "optimizer.bf16_moments=true"
    message = refused("experiment=quickstart", setting, f"run.root={tmp_path}")
    assert "the device is cpu" in message and "optimizer.bf16_moments=false" in message
    assert not list(tmp_path.iterdir())


def test_a_backend_of_kernels_that_there_is_not(tmp_path):
    for command in ("megatron_r1.train", "megatron_r1.evaluate"):
        done = train(*BASE, f"run.root={tmp_path}", program=command, R1_KERNELS="tritn")
        assert done.returncode == 2, done.stderr
        choices = "R1_KERNELS must be auto, reference or triton, got 'tritn'"
        assert done.stderr.strip() == f"ConfigError: {choices}"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be had here")
def test_a_backend_of_kernels_that_this_device_cannot_run(tmp_path):
    asked = {"R1_KERNELS": "triton", "TRITON_INTERPRET": "0"}
    done = train(*BASE, f"run.root={tmp_path}", **asked)
    assert done.returncode == 2, done.stderr[-2000:]
    (message,) = done.stderr.splitlines()
    assert message.startswith("ConfigError: R1_KERNELS=triton, and Triton does not run on cpu. ")
    assert "R1_KERNELS=auto" in message
    assert not list(tmp_path.iterdir())


def test_no_base_model(tmp_path):
    message = refused(*ZERO, f"run.root={tmp_path}")
    assert "model.init_from=DIR" in message


def test_missing_prompt_file(zero, tmp_path):
    message = refused(*zero, "data=jsonl", f"data.path={tmp_path}/none.jsonl")
    assert f"{tmp_path}/none.jsonl" in message


def test_empty_prompt_file(zero, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    message = refused(*zero, "data=jsonl", f"data.path={tmp_path}/empty.jsonl")
    assert f"{tmp_path}/empty.jsonl" in message


def test_malformed_line_is_named(zero, tmp_path):
    good = json.dumps({"question": "1 + 1 =", "answer": "2"})
    (tmp_path / "prompts.jsonl").write_text(f'{good}\n{{"question": "2 + 2 =", "answer": \n')
    message = refused(*zero, "data=jsonl", f"data.path={tmp_path}/prompts.jsonl")
    assert f"{tmp_path}/prompts.jsonl:2" in message


def test_tokenizer_that_does_not_fit(zero):
    message = refused(*zero, "model.vocab_size=300")
    assert "model.vocab_size=" in message and "data.tokenizer=" in message


def test_truncated_checkpoint(zero, base, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    checkpoint = broken / "checkpoints/step_000001"
    shard = max(checkpoint.glob("policy/*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    message = refused(*zero, f"model.init_from={broken}")
    assert str(checkpoint) in message and shard.name in message


def test_checkpoint_of_another_program(zero, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"0" * 100)
    message = refused(*zero, f"model.init_from={foreign}")
    assert str(foreign) in message and "no checkpoint of this program" in message
    (foreign / "state.json").write_text("{}")
    (foreign / "tokenizer").mkdir()
    message = refused(*zero, f"model.init_from={foreign}")
    assert str(foreign) in message


def test_checkpoint_of_another_model(zero):
    message = refused(*zero, "model.num_layers=2")
    assert "model.num_layers: checkpoint 4, configuration 2" in message


def test_a_reward_hack_that_the_monitor_may_stop_for(zero, tmp_path):
    # A length that changes at all is a drift here, and some phase is the first to have another.
    watch = ["monitor=stop", "monitor.length_factor=1.0001", "monitor.baseline_phases=1"]
    watch += ["monitor.window_phases=1", "rollout.max_response_tokens=64", "stage.num_steps=12"]
    message = refused(*zero, *watch, "stage.rollouts_per_prompt=8")
    assert "RewardHackError: reward hacking after step" in message
    assert "length_drift: tokens" in message and "monitor.stop_on" in message
    last = (tmp_path / "r1_zero/checkpoints/latest").read_text().strip()
    assert f"after step {int(last.removeprefix('step_'))}:" in message


def test_two_processes_in_one_run_directory(base, tmp_path):
    long = [*BASE, f"run.root={tmp_path}", "run.name=shared", "stage.num_steps=100000"]
    first = subprocess.Popen(
        [sys.executable, "-m", "megatron_r1.train", *long],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "shared/metrics.jsonl").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        message = refused(*long)
        assert f"{tmp_path}/shared is in use by process {first.pid} on" in message
        assert first.poll() is None  # and goes on
    finally:
        first.kill()
        first.wait()


EVALUATED = ["data.num_problems=3000", "data.heldout_problems=8", "data.corpus_frac=0.4"]
EVALUATED += ["data.max_prompt_tokens=64", "rollout.max_response_tokens=16"]


def test_a_checkpoint_is_evaluated_once_and_wrong_suites_are_named(base, tmp_path):
    cases = [{"question": f"{n} + 1 =", "answer": str(n + 1)} for n in range(200)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, [*cases, cases[0]])))
    overrides = [str(base), *EVALUATED, f"run.root={tmp_path}", "run.name=measured"]
    overrides += ["data=jsonl", f"data.path={prompts}"]
    samples = "evaluation.suites.heldout.samples=2"
    first = train(*overrides, samples, program="megatron_r1.evaluate")
    assert first.returncode == 0, first.stderr[-4000:]
    assert f"1 prompts ask what an earlier line of {prompts} asks" in first.stdout
    path = tmp_path / "measured/eval/heldout/heldout.json"
    found = json.loads(path.read_text())
    assert (found["problems"], found["samples"], len(found["by_problem"])) == (8, 2, 8)
    right = sum(problem["right"] for problem in found["by_problem"])
    assert found["measures"]["pass@1"]["value"] == right / 16
    assert list(found["measures"]) == ["pass@1", "pass@2", "cons@2"]
    assert {file.name for file in path.parents[1].glob("heldout.*")} == {
        "heldout.json",
        "heldout.md",
        "heldout.png",
    }
    # Known already: nothing is sampled, and nothing written.
    written = path.stat().st_mtime_ns
    again = train(*overrides, samples, program="megatron_r1.evaluate")
    assert "| heldout | pass@1" in again.stdout and path.stat().st_mtime_ns == written
    (tmp_path / "aime.jsonl").write_text('{"prompt": "?"}\n')
    wrong = ["evaluation=r1", f"evaluation.suites.aime.path={tmp_path}/aime.jsonl"]
    wrong += ["evaluation.max_prompt_tokens=64"]
    refusal = train(*overrides, *wrong, program="megatron_r1.evaluate")
    assert refusal.returncode == 2 and "Traceback" not in refusal.stderr
    assert "aime.jsonl:1: no aime record: it lacks answer or Answer" in refusal.stderr


def test_an_evaluation_whose_judge_is_down_is_finished_by_the_next_start(base, tmp_path):
    cases = [{"question": f"{n} + 1 =", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "general.jsonl").write_text("\n".join(map(json.dumps, cases)))
    overrides = [str(base), *EVALUATED, f"run.root={tmp_path}", "run.name=judged"]
    overrides += [
        "evaluation=tiny_world",
        f"evaluation.suites.general.path={tmp_path}/general.jsonl",
    ]
    overrides += ["evaluation.judge.max_retries=0"]
    result = tmp_path / "judged/eval/tiny_world/general.json"

    def evaluate(url: str) -> subprocess.CompletedProcess:
        judge = f"evaluation.judge.base_url={url}"
        return train(*overrides, judge, program="megatron_r1.evaluate")

    down = evaluate("http://127.0.0.1:9/v1")
    assert down.returncode != 0 and "the judge at http://127.0.0.1:9/v1 did not" in down.stderr
    assert not result.exists() and len(list(result.parent.glob("general_parts/*"))) == 1
    correct = Reply('{"analysis": "", "correctness": "correct"}')
    with judge_server(lambda body: correct) as endpoint:
        again = evaluate(endpoint.url)
    assert again.returncode == 0, again.stderr[-4000:]
    assert "evaluating general" not in again.stdout  # nothing was sampled again
    assert json.loads(result.read_text())["not_counted"] == {}


def small_disk(directory: Path, megabytes: int) -> bool:
    """Mount a file system of that size, where this process may; False where it may not."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_while_saving_loses_nothing(base, tmp_path):
    """One checkpoint fits (17 MB), the second does not: the first stays, whole and loadable."""
    disk = tmp_path / "disk"
    mounted = small_disk(disk, 28)
    limit = "" if mounted else "ulimit -f 4000; "  # no right to mount: files of at most 4 MB
    name = "full"
    if not mounted:  # the limit would hit the first checkpoint too: bring one along
        shutil.copytree(base, disk / name)
    try:
        command = [*BASE, f"run.root={disk}", f"run.name={name}", "stage.num_steps=3"]
        command.append("cluster.min_free_disk_gib=0")  # let the node check pass
        done = subprocess.run(
            ["bash", "-c", f'{limit}exec "$@"', "_", sys.executable, "-m", "megatron_r1.train"]
            + command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 2, done.stderr[-4000:]
        message = done.stderr[done.stderr.index("CheckpointError") :]
        assert "Traceback" not in message
        assert "step_000001 is whole" in message
        assert not list((disk / name / "checkpoints").glob(".partial*"))
        # The checkpoint that is left serves as well as before.
        again = train(*ZERO, f"model.init_from={disk / name}", f"run.root={tmp_path}/elsewhere")
        assert again.returncode == 0, again.stderr[-4000:]
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
