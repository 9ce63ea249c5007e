"""The four stages of R1 as a user starts them, one after another in one process."""

from __future__ import annotations

import json
import re

import pytest

from tests.rewards.judge_server import Reply, judge_server
from tests.stages.test_examples import metrics, run

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]
NUM_PROMPTS = 8


def lines(path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_four_stages_from_a_base_model(tmp_path):
    """The teacher answers what the base cannot; SFT learns it by heart, so that there is something
    to sample in stage 3."""

    def teach(request: dict) -> Reply:
        text = request["messages"][0]["content"]
        if "Decide whether" in text:
            return Reply('{"analysis": "it does", "correctness": "correct"}')
        question = re.findall(r"<question>\n(.*)\n</question>", text)[-1]
        if "Write down the thought" in text:
            return Reply("they want words")
        number = int(question.split()[0])
        return Reply(f"<think>{number}, {number + 1}</think><answer>{number + 1}</answer>")

    reasoning = [{"question": f"{n} + 1 =", "answer": str(n + 1)} for n in range(NUM_PROMPTS)]
    reasoning[0]["dataset"] = "essays"
    general = [
        {"question": f"{n} ?", "answer": "-", "dataset": ("helpfulness", "harmlessness")[n % 2]}
        for n in range(4)
    ]
    prompts = lines(tmp_path / "prompts.jsonl", [*reasoning, *general, reasoning[0]])
    examples = lines(
        tmp_path / "few.jsonl",
        [
            {"question": "9 + 1 =", "response": "<think>9, 10</think><answer>10</answer>"},
            {"question": "no response"},
        ],
    )
    other = [
        {"question": "please tell me something long", "response": "something"},
        {"question": "hello", "response": "<answer>hello</answer>"},
    ]
    others = lines(tmp_path / "general.jsonl", [*other, {"question": "no response"}])
    labelled = [{"prompt": "1 ?", "response": "no" * (n % 2), "safe": n % 2 == 0} for n in (1, 2)]
    for record in labelled:
        record["response"] = record["response"] or "yes"
    pairs = [{"prompt": "1 ?", "chosen": "<answer>yes", "rejected": "no"}]

    base = ["stage=tiny_base", "run.name=base", "stage.num_steps=1", "data.corpus_frac=0.4"]
    base += ["stage.sequences_per_step=4", "stage.num_documents=400"]
    init = f"model.init_from={tmp_path}/base"
    data = ["data=jsonl", f"data.path={prompts}", "data.template=plain", "data.heldout_problems=0"]
    data += ["data.max_prompt_tokens=40", "rollout.max_response_tokens=40"]
    only_reasoning = "data.leave_out=[helpfulness,harmlessness]"
    with judge_server(teach) as endpoint:
        teacher = ["stage.teacher.enabled=true", f"stage.teacher.base_url={endpoint.url}"]
        sft = ["stage.max_tokens=80", "stage.examples_per_step=6", "optimizer.lr=2e-2"]
        sft += ["stage.heldout_frac=0.1", "stage.evaluate_every_steps=20", "optimizer.beta2=0.99"]
        one = ["stage=r1_stage1", "run.name=one", init, *data, only_reasoning, *teacher, *sft]
        one += [f"stage.collect.source={tmp_path}/base", "stage.collect.samples_per_prompt=2"]
        one += ["stage.collect.prompts_per_part=4", f"stage.few_shot={examples}"]
        one += ["data.bad_lines=set_aside"]
        one += ["stage.num_epochs=60"]
        rl = ["stage.num_steps=3", "stage.steps_per_phase=2", "stage.prompts_per_step=2"]
        rl += ["stage.rollouts_per_prompt=2", "optimizer.lr=1e-5"]
        two = ["stage=r1_stage2", "run.name=two", f"model.init_from={tmp_path}/one", *data, *rl]
        two += [only_reasoning]
        three = ["stage=r1_stage3", "run.name=three", init, *data, only_reasoning, *teacher, *sft]
        three += [f"stage.collect.source={tmp_path}/two", "stage.collect.samples_per_prompt=8"]
        three += [f"stage.general={others}", "stage.collect.judged_datasets=[essays]"]
        three += [f"judge.base_url={endpoint.url}", "stage.reasoning_per_general=0"]
        three.append("data.bad_lines=set_aside")
        models = [init, "stage.max_tokens=64", "data.template=plain"]
        helpful = ["stage=rm_helpful", "run.name=helpful", *models]
        helpful += [f"stage.examples={lines(tmp_path / 'pairs.jsonl', pairs)}"]
        safety = ["stage=rm_safety", "run.name=safety", *models]
        safety += [f"stage.examples={lines(tmp_path / 'labelled.jsonl', labelled)}"]
        four = ["stage=r1_stage4", "run.name=four", f"model.init_from={tmp_path}/three", *data, *rl]
        four += ["stage.preference_steps=1", f"reward.models.helpful={tmp_path}/helpful"]
        four += [f"reward.models.safety={tmp_path}/safety", "telemetry.rollout_samples=-1"]
        four.append("run.seed=2")
        unset = [*four[:3], *four[4:], "stage.preference_steps=4", "run.name=refused"]
        nothing = [*one, "run.name=nothing", "stage.teacher.enabled=false", "stage.few_shot=null"]
        codes = (0, 0, 0, 0, 0, 0, 0, 0, 2, 2)
        output = run(
            tmp_path, base, one, one, two, three, helpful, safety, four, unset, nothing,
            exit_codes=codes,
        )  # fmt: skip

    # Every stage that draws prompts says what it drops; one that has its samples draws none.
    repeated = f"1 prompts ask what an earlier line of {prompts} asks, and were dropped"
    assert output.count(repeated) == len([one, two, three, four, nothing])
    # Each start of stages 1 and 3 reads its other samples once, and leaves out the bad line.
    assert output.count(f"1 bad lines of {examples} were set aside") == len([one, one])
    assert output.count(f"1 bad lines of {others} were set aside") == len([three])
    # Stage 1: the base solves nothing, the teacher all; a part for each 4 prompts, read once.
    train, heldout = (
        read(tmp_path / "one/data/train.jsonl"),
        read(tmp_path / "one/data/heldout.jsonl"),
    )
    parts = sorted((tmp_path / "one/data/samples").iterdir())
    drawn = {sample["draw"] for part in parts for sample in read(part)}
    assert len(parts) == 2 and len(train) + len(heldout) == len(drawn) and train and heldout
    for example in train:
        lineage = example["lineage"]
        assert lineage["model"] == "default" and "model_version" not in lineage
        assert lineage["verdicts"]["origin"] == "teacher, few-shot"
    rows = metrics(tmp_path / "one")
    assert len(rows) == 60 * len(train) // 6 and output.count("r1_stage1: resuming") == 1
    assert rows[-1]["train/nll"] < 0.5 < rows[0]["train/nll"]
    assert rows[-1]["train/lr"] == pytest.approx(5e-6)
    measured = [row["step"] for row in rows if "heldout/nll" in row]
    assert measured == [*range(20, len(rows), 20), len(rows)]
    # Stage 2: a phase of two updates and one of one; three parts, summed.
    assert [row["step"] for row in metrics(tmp_path / "two")] == [1, 2, 3]
    assert {"reward/accuracy", "reward/format", "reward/language"} < metrics(tmp_path / "two")[
        0
    ].keys()
    counted = [read(path) for path in sorted((tmp_path / "two/pass_counts").iterdir())]
    assert [[c["samples"] for c in counts] for counts in counted] == [[2] * 4, [2] * 2]
    # Stage 3: all of reasoning and all others; the long question got a thought, "hello" none.
    manifest = json.loads((tmp_path / "three/data/manifest.json").read_text())
    assert manifest["reasoning"] == manifest["reasoning, all"] > 1
    assert manifest["general"] == len(other)
    both = (tmp_path / f"three/data/{name}.jsonl" for name in ("train", "heldout"))
    found = {e["question"]: e for path in both for e in read(path)}
    assert found["hello"]["response"] == "<answer>hello</answer>"
    long = "<think>they want words</think><answer>something</answer>"
    assert found["please tell me something long"]["response"] == long
    # No rule grades an essay: the readable ones are kept because the judge has said so.
    parts = sorted((tmp_path / "three/data/samples").iterdir())
    essays = [s for path in parts for s in read(path) if s["dataset"] == "essays"]
    assert len(essays) == 8 and all("accuracy" not in sample["parts"] for sample in essays)
    fit = {s["response"] for s in essays if min(s["parts"].values()) == 1.0}
    kept = [e for e in found.values() if e["dataset"] == "essays"]
    assert bool(kept) == bool(fit) and {e["response"] for e in kept} <= fit
    for example in found.values():
        judged = example["lineage"].get("verdicts", {}).get("judged")
        assert judged == (1.0 if example["dataset"] == "essays" else None)
    # Stage 4: general prompts and models in the last update alone, of a phase of its own.
    steps = sorted((tmp_path / "four/rollouts").iterdir())
    assert [path.stem for path in steps] == ["step_000001", "step_000003"]
    first, last = (read(path) for path in steps)
    assert all("?" not in rollout["question"] for rollout in first)
    assert all(set(r["parts"]) == {"accuracy", "format", "language"} for r in first)
    # With this seed one prompt of each kind, two rollouts each: a helpful one has its own model.
    asked = ["?" in rollout["question"] for rollout in last]
    assert sorted(asked) == [False, False, True, True]
    for rollout, is_general in zip(last, asked, strict=True):
        assert set(rollout["parts"]) == {
            "helpful" if is_general else "accuracy",
            "format",
            "language",
        }
    assert "preference_steps = 4 must lie between" in output
    assert "no sample is left to train on" in output and "dropped: accuracy" in output
