"""Programs judged by tests, in the sandbox of this machine."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from megatron_r1.config.reward import Isolation, RewardConfig, SandboxConfig
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.rewards.code import extract_code
from megatron_r1.rewards.sandbox.run import Job, find_isolation, problem_of, run
from megatron_r1.rewards.scorer import RewardScorer
from tests.rewards.builders import group_of, prompt_of, rollout_of

SUMS = {"stdio": [{"input": "1 2\n", "output": "3\n"}, {"input": "-1 1", "output": "0"}]}
PATIENT = SandboxConfig(wall_s=40.0, max_parallel=2)


@pytest.fixture(scope="module", autouse=True)
def _isolation():
    try:
        find_isolation()
    except ConfigError as error:
        pytest.skip(f"no sandbox here: {error}")


def judged(source: str, config: SandboxConfig = PATIENT, **tests) -> tuple[float, str]:
    name = tests.get("language", "python")
    prompt = replace(prompt_of("", "code"), grader_data={"tests": tests})
    return accuracy(
        prompt, rollout_of(f"<think>hm</think>\n```{name}\n{source}\n```"), config=config
    )


def test_every_test_must_pass():
    assert judged("print(sum(map(int, input().split())))", **SUMS) == (1.0, "right: passes 2 tests")
    value, reason = judged("print(3)", **SUMS)
    assert (value, reason) == (0.0, "wrong: test 2 of 2: wrong output '3'")


def test_a_crash_a_loop_and_silence_are_told_apart():
    assert judged("1 / 0", **SUMS)[1].endswith("exit code 1: ZeroDivisionError: division by zero")
    quick = replace(PATIENT, cpu_s=1.0)
    assert judged("while True: pass", quick, **SUMS)[1].endswith("over its limit of cpu time")
    assert judged("", **SUMS)[1].endswith("wrong output ''")


def test_an_output_that_looks_like_a_unit_tests_word_is_compared_as_a_whole():
    digest = "5d41402abc4b2a76b9719d911017c592"
    tests = {"stdio": [{"input": "hello", "output": digest + "\n"}]}
    assert judged(f"print('{digest}')", **tests)[0] == 1.0
    assert judged(f"print('a guess')\nprint('{digest}')", **tests)[0] == 0.0


def test_unit_tests_see_the_solutions_names():
    unit = "assert double(3) == 6\nassert double('a') == 'aa'"
    assert judged("def double(x):\n    print('noise')\n    return 2 * x", unit=unit)[0] == 1.0
    value, reason = judged("def double(x):\n    return x + 3", unit=unit)
    assert value == 0.0 and "exit code 1" in reason


@pytest.mark.parametrize(
    "cheat",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "import sys; print(open('/box/main.py').read()); sys.exit(0)",
        "import sys; print(sys.stdin.read()); sys.exit(0)",
        "import atexit, os; atexit.register(lambda: os._exit(0)); raise SystemExit",
        "class E(dict): pass\nimport builtins; builtins.AssertionError = E; raise SystemExit",
    ],
)
def test_leaving_before_the_tests_is_not_passing(cheat):
    assert judged(cheat, unit="assert double(3) == 6")[0] == 0.0


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_cpp():
    source = "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }"
    assert judged(source, language="cpp", **SUMS)[0] == 1.0
    value, reason = judged("int main( { }", language="cpp", **SUMS)
    assert value == 0.0 and "does not compile" in reason and "error" in reason


def test_the_last_block_of_the_language_after_the_thought_counts():
    response = (
        "<think>\n```python\nthought\n```\n</think>\n```python\nfirst\n```\n"
        "or\n```py\nsecond\n```\noutput:\n```text\n3\n```\n"
    )
    assert extract_code(response, "python") == "second\n"
    assert extract_code("no code", "python") is None
    assert extract_code("```python\nunclosed", "python") is None


def test_tests_that_cannot_be_read_are_the_datas_fault():
    with pytest.raises(DataError, match="holds neither stdio nor unit"):
        judged("print(1)", stdio=[])


def test_a_group_of_programs_is_scored_on_the_workers():
    prompt = replace(prompt_of("", "code"), grader_data={"tests": SUMS})
    right, wrong = "print(sum(map(int, input().split())))", "print(1)"
    texts = [f"```python\n{source}\n```" for source in (right, wrong, right)]
    config = RewardConfig(weights={"accuracy": 1.0}, timeout_s=5.0, sandbox=PATIENT)
    with RewardScorer(config) as scorer:
        (scored,) = scorer.score([group_of(prompt, *texts)])
        assert scorer.stats.num_timeouts == 0
    assert [reward.total for reward in scored.rewards] == [1.0, 0.0, 1.0]


def test_without_isolation_it_refuses_unless_asked_by_name(tmp_path):
    assert find_isolation() is not Isolation.none
    # Asked for by name, a program runs with this user's rights, and its limits.
    outcome = run(Job(["/bin/sh", "-c", f"echo out > {tmp_path}/x; echo done"]), Isolation.none)
    assert outcome.stdout == b"done\n"
    assert (tmp_path / "x").read_text() == "out\n"
    assert problem_of(Isolation.none) is None
