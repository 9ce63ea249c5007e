"""The four stages of R1 as a user starts them, one after another in one process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rewards.judge_server import Reply, judge_server
from tests.stages.test_examples import metrics, run

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]

NUM_PROMPTS = 8
OTHERS = [
    {"question": "please tell me something long", "response": "something"},
    {"question": "hello", "response": "<answer>hello</answer>"},
]


@dataclass
class Done:
    """All commands of the four stages, run."""

    root: Path
    output: str
    prompts: str
    examples: str
    others: str


def lines(path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def teach(request: dict) -> Reply:
    """A teacher that answers what the base cannot, and a judge that finds it right."""
    text = request["messages"][0]["content"]
    if "Decide whether" in text:
        return Reply('{"analysis": "it does", "correctness": "correct"}')
    question = re.findall(r"<question>\n(.*)\n</question>", text)[-1]
    if "Write down the thought" in text:
        return Reply("they want words")
    number = int(question.split()[0])
    return Reply(f"<think>{number}, {number + 1}</think><answer>{number + 1}</answer>")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    """SFT learns the teacher's answers by heart, so that there is something to sample in stage 3.
    Stage 1 is started twice, and the last two commands are refused."""
    root = tmp_path_factory.mktemp("r1")
    reasoning = [{"question": f"{n} + 1 =", "answer": str(n + 1)} for n in range(NUM_PROMPTS)]
    reasoning[0]["dataset"] = "essays"
    general = [
        {"question": f"{n} ?", "answer": "-", "dataset": ("helpfulness", "harmlessness")[n % 2]}
        for n in range(4)
    ]
    prompts = lines(root / "prompts.jsonl", [*reasoning, *general, reasoning[0]])
    ten = {"question": "9 + 1 =", "response": "<think>9, 10</think><answer>10</answer>"}
    examples = lines(root / "few.jsonl", [ten, {"question": "no response"}])
    others = lines(root / "general.jsonl", [*OTHERS, {"question": "no response"}])
    with judge_server(teach) as endpoint:
        commands = [*stages(root, prompts, examples, others, endpoint.url)]
        *accepted, _, _ = commands
        codes = (*[0] * len(accepted), 2, 2)
        output = run(root, *commands, exit_codes=codes)
    return Done(root, output, prompts, examples, others)


def stages(root: Path, prompts: str, examples: str, others: str, url: str) -> Iterator[list[str]]:
    """The settings of each command."""
    init = f"model.init_from={root}/base"
    data = ["data=jsonl", f"data.path={prompts}", "data.template=plain", "data.heldout_problems=0"]
    data += ["data.max_prompt_tokens=40", "rollout.max_response_tokens=40"]
    only_reasoning = "data.leave_out=[helpfulness,harmlessness]"
    teacher = ["stage.teacher.enabled=true", f"stage.teacher.base_url={url}"]

    base = ["stage=tiny_base", "run.name=base", "stage.num_steps=1", "data.corpus_frac=0.4"]
    yield [*base, "stage.sequences_per_step=4", "stage.num_documents=400"]

    sft = ["stage.max_tokens=80", "stage.examples_per_step=6", "optimizer.lr=2e-2"]
    sft += ["stage.heldout_frac=0.1", "stage.evaluate_every_steps=20", "optimizer.beta2=0.99"]
    sft += ["data.bad_lines=set_aside"]
    one = ["stage=r1_stage1", "run.name=one", init, *data, only_reasoning, *teacher, *sft]
    one += [f"stage.collect.source={root}/base", "stage.collect.samples_per_prompt=2"]
    one += ["stage.collect.prompts_per_part=4", f"stage.few_shot={examples}"]
    one += ["stage.num_epochs=60"]
    yield one
    yield one

    rl = ["stage.num_steps=3", "stage.steps_per_phase=2", "stage.prompts_per_step=2"]
    rl += ["stage.rollouts_per_prompt=2", "optimizer.lr=1e-5"]
    two = ["stage=r1_stage2", "run.name=two", f"model.init_from={root}/one", *data, *rl]
    yield [*two, only_reasoning]

    three = ["stage=r1_stage3", "run.name=three", init, *data, only_reasoning, *teacher, *sft]
    three += [f"stage.collect.source={root}/two", "stage.collect.samples_per_prompt=8"]
    three += [f"stage.general={others}", "stage.collect.judged_datasets=[essays]"]
    yield [*three, f"judge.base_url={url}", "stage.reasoning_per_general=0"]

    models = [init, "stage.max_tokens=64", "data.template=plain"]
    pairs = [{"prompt": "1 ?", "chosen": "<answer>yes", "rejected": "no"}]
    helpful = f"stage.examples={lines(root / 'pairs.jsonl', pairs)}"
    yield ["stage=rm_helpful", "run.name=helpful", *models, helpful]
    labelled = [
        {"prompt": "1 ?", "response": "no", "safe": False},
        {"prompt": "1 ?", "response": "yes", "safe": True},
    ]
    safety = f"stage.examples={lines(root / 'labelled.jsonl', labelled)}"
    yield ["stage=rm_safety", "run.name=safety", *models, safety]

    four = ["stage=r1_stage4", "run.name=four", *data, *rl]
    four += [f"reward.models.helpful={root}/helpful", f"reward.models.safety={root}/safety"]
    four += ["telemetry.rollout_samples=-1", "run.seed=2", f"model.init_from={root}/three"]
    yield [*four, "stage.preference_steps=1"]
    yield [*four, "stage.preference_steps=4", "run.name=refused"]
    yield [*one, "run.name=nothing", "stage.teacher.enabled=false", "stage.few_shot=null"]


def test_every_stage_says_what_it_drops(done):
    """One that has its samples draws none."""
    repeated = f"1 prompts ask what an earlier line of {done.prompts} asks, and were dropped"
    assert done.output.count(repeated) == len(["one", "two", "three", "four", "nothing"])
    # Each start of stages 1 and 3 reads its other samples once, and leaves out the bad line.
    bad_line = "1 bad lines of {} were set aside"
    assert done.output.count(bad_line.format(done.examples)) == len(["one", "one"])
    assert done.output.count(bad_line.format(done.others)) == len(["three"])
    assert "preference_steps = 4 must lie between" in done.output
    assert "no sample is left to train on" in done.output and "dropped: accuracy" in done.output


def test_stage_1_learns_what_the_teacher_wrote(done):
    """The base solves nothing, the teacher all; a part for each 4 prompts, read once."""
    one = done.root / "one"
    train, heldout = (read(one / f"data/{name}.jsonl") for name in ("train", "heldout"))
    parts = sorted((one / "data/samples").iterdir())
    drawn = {sample["draw"] for part in parts for sample in read(part)}
    assert len(parts) == 2 and len(train) + len(heldout) == len(drawn) and train and heldout
    for example in train:
        lineage = example["lineage"]
        assert lineage["model"] == "default" and "model_version" not in lineage
        assert lineage["verdicts"]["origin"] == "teacher, few-shot"
    rows = metrics(one)
    assert len(rows) == 60 * len(train) // 6 and done.output.count("r1_stage1: resuming") == 1
    assert rows[-1]["train/nll"] < 0.5 < rows[0]["train/nll"]
    assert rows[-1]["train/lr"] == pytest.approx(5e-6)
    measured = [row["step"] for row in rows if "heldout/nll" in row]
    assert measured == [*range(20, len(rows), 20), len(rows)]


def test_stage_2_is_reasoning_with_three_rewards(done):
    """A phase of two updates and one of one; three parts, summed."""
    rows = metrics(done.root / "two")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"reward/accuracy", "reward/format", "reward/language"} < rows[0].keys()
    counted = [read(path) for path in sorted((done.root / "two/pass_counts").iterdir())]
    assert [[c["samples"] for c in counts] for counts in counted] == [[2] * 4, [2] * 2]


def test_stage_3_has_all_of_reasoning_and_all_others(done):
    """The long question got a thought, "hello" none."""
    three = done.root / "three/data"
    manifest = json.loads((three / "manifest.json").read_text())
    assert manifest["reasoning"] == manifest["reasoning, all"] > 1
    assert manifest["general"] == len(OTHERS)
    both = (three / f"{name}.jsonl" for name in ("train", "heldout"))
    found = {e["question"]: e for path in both for e in read(path)}
    assert found["hello"]["response"] == "<answer>hello</answer>"
    long = "<think>they want words</think><answer>something</answer>"
    assert found["please tell me something long"]["response"] == long
    # No rule grades an essay: the readable ones are kept because the judge has said so.
    parts = sorted((three / "samples").iterdir())
    essays = [s for path in parts for s in read(path) if s["dataset"] == "essays"]
    assert len(essays) == 8 and all("accuracy" not in sample["parts"] for sample in essays)
    fit = {s["response"] for s in essays if min(s["parts"].values()) == 1.0}
    kept = [e for e in found.values() if e["dataset"] == "essays"]
    assert bool(kept) == bool(fit) and {e["response"] for e in kept} <= fit
    for example in found.values():
        judged = example["lineage"].get("verdicts", {}).get("judged")
        assert judged == (1.0 if example["dataset"] == "essays" else None)


def test_stage_4_has_general_prompts_and_models_in_the_last_update_alone(done):
    """It is a phase of its own."""
    steps = sorted((done.root / "four/rollouts").iterdir())
    assert [path.stem for path in steps] == ["step_000001", "step_000003"]
    first, last = (read(path) for path in steps)
    assert all("?" not in rollout["question"] for rollout in first)
    assert all(set(r["parts"]) == {"accuracy", "format", "language"} for r in first)
    # With this seed one prompt of each kind, two rollouts each: a helpful one has its own model.
    asked = ["?" in rollout["question"] for rollout in last]
    assert sorted(asked) == [False, False, True, True]
    for rollout, is_general in zip(last, asked, strict=True):
        own = "helpful" if is_general else "accuracy"
        assert set(rollout["parts"]) == {own, "format", "language"}
