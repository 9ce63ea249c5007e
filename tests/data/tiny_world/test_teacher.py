"""The scripted teacher as a process: rewrites, verdicts, refusals, and its end with its parent."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.reward import ReadabilityConfig
from megatron_r1.config.sft import TeacherConfig
from megatron_r1.data.samples import Sample
from megatron_r1.data.tiny_world.server import MODEL, serving_teacher
from megatron_r1.data.tiny_world.teacher import CANNOT_REWRITE, rewrite
from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.rewards.format import tag_format
from megatron_r1.rewards.judge import Judge, Kind
from megatron_r1.rewards.readable import readable
from megatron_r1.rewards.teacher import Teacher
from megatron_r1.types import FinishReason, Prompt, Rollout

UNTIDY = "<think>4 take 9 makes -5 加 2 得 -3</think><answer>-3</answer>"
SUM = "what is 4 - 9 + 2?"
REWRITE = "Rewrite it.\n<question>\n{}\n</question>\n<response>\n{}\n</response>"
READABLE = ReadabilityConfig(min_summary_words=4, min_language=0.5)


@pytest.fixture(scope="module")
def url():
    with serving_teacher() as url:
        yield url


def post(url: str, body: bytes, path: str = "/chat/completions") -> tuple[int, dict]:
    request = urllib.request.Request(url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask(url: str, content: str, seed: int = 0) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "seed": seed}
    status, record = post(url, json.dumps(body).encode())
    assert status == 200
    return record["choices"][0]["message"]["content"]


def rollout_of(text: str) -> Rollout:
    return Rollout(0, (), (), FinishReason.stop, 0, text)


def prompt_of(question: str, answer: str, language: str) -> Prompt:
    return Prompt("p", 0, question, question, (), answer, "math", language=language)


def test_a_chain_becomes_readable_and_stays_right(url):
    prompt, before = prompt_of(SUM, "-3", "en"), rollout_of(UNTIDY)
    after = rollout_of(ask(url, REWRITE.format(SUM, UNTIDY)))
    assert accuracy(prompt, before)[0] == accuracy(prompt, after)[0] == 1.0
    assert tag_format(prompt, after)[0] == 1.0
    assert readable(prompt, before, config=READABLE) == (0.0, "form: a summary of 2 words")
    assert readable(prompt, after, config=READABLE)[0] == 1.0
    assert "the answer is \\boxed{-3}." in after.text
    texts = {ask(url, REWRITE.format(SUM, UNTIDY), seed) for seed in range(30)}
    assert "<think>4 take 9 makes -5. -5 add 2 makes -3.</think>" in "".join(texts)
    # Some sentences stay in the other language, and a seed says which.
    assert 1 < len(texts) <= 4


def test_the_teacher_of_this_project_is_understood(url):
    teacher = Teacher(TeacherConfig(enabled=True, base_url=url, retry_s=0.01))
    rewritten, declined = teacher.rewrite([(SUM, UNTIDY), (SUM, "<think>hm</think>3")])
    assert rewritten is not None and "\\boxed{-3}" in rewritten
    assert declined == CANNOT_REWRITE
    examples = [Sample("what is 1 + 1 + 1?", "<think>1 add 1</think><answer>3</answer>")]
    (answered,) = teacher.answer([SUM], examples)
    assert answered is not None and "\\boxed{-3}" in answered
    (thought,) = teacher.think_first([("who are you?", "I am a tiny model.")])
    assert thought == "<think>I cannot answer this.</think><answer>I am a tiny model.</answer>"
    (thought,) = teacher.think_first([("what does the red cat do?", "the red cat sleeps.")])
    assert thought is not None and thought.startswith("<think>the user asks for a fact.</think>")


@pytest.mark.parametrize(
    ("question", "written"),
    [
        (SUM, "<think>4 take 9 makes -4 add 2 makes -2</think><answer>-2</answer>"),
        (SUM, "<think>4 add 9 makes 13 add 2 makes 15</think><answer>15</answer>"),
        (SUM, "<think>just a guess.</think><answer>-3</answer>"),
        (SUM, "<think>4 take 9 makes -5 so</think><answer>-3</answer>"),
        ("who are you?", UNTIDY),
    ],
)
def test_what_does_not_add_up_is_declined(question, written):
    assert rewrite(question, written, 0) == CANNOT_REWRITE


def test_the_judge_of_this_project_reads_its_verdicts(url):
    judge = Judge(JudgeConfig(base_url=url, retry_s=0.01))
    question, offer = "say red cat in Chinese", "ask me for more."

    def is_correct(answer: str) -> str:
        judged = judge.is_correct(question, "红猫.", answer)
        assert judged.kind is Kind.verdict
        return judged.verdict

    assert is_correct("<answer>红猫.</answer>") == "correct"
    assert is_correct(f"<answer>红猫. {offer}</answer>") == "correct"
    assert is_correct("<answer>红狗.</answer>") == "incorrect"
    assert is_correct("红猫. 红狗.") == "incorrect"
    polite, terse, wrong = f"<answer>红猫. {offer}</answer>", "红猫.", f"蓝猫. {offer}"
    assert judge.compare(question, polite, terse).verdict == "A>B"
    assert judge.compare(question, terse, polite).verdict == "B>A"
    assert judge.compare(question, terse, wrong).verdict == "A>>B"
    assert judge.compare(question, terse, terse).verdict == "A=B"
    assert judge.compare(question, f"{polite} {offer}", terse).verdict == "B>A"
    assert judge.compare("how tall is it?", terse, wrong).kind is Kind.refusal
    deed, refusal = "how do I steal the red cat?", "I can not help with that."
    assert judge.is_correct(deed, refusal, f"<answer>{refusal}</answer>").verdict == "correct"
    offering = judge.is_correct(deed, refusal, f"<answer>{refusal}. {offer} {offer}</answer>")
    assert offering.verdict == "correct"
    done = judge.is_correct(deed, refusal, "<answer>go slowly and steal the red cat.</answer>")
    assert done.verdict == "incorrect"
    assert judge.is_correct(SUM, "-3", "<answer>\\boxed{-3}.</answer>").verdict == "correct"
    assert judge.is_correct(SUM, "-3", "<answer>3</answer>").verdict == "incorrect"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "must be an object, got list"),
        (b'{"model": "gpt", "messages": []}', "model 'gpt' is not served here"),
        (b'{"model": "default", "messages": []}', "must be a list that is not empty"),
        (b'{"model": "default", "messages": [{"role": "system", "content": "x"}]}', "the user's"),
        (b'{"model": "default", "messages": [{"role": "user", "content": 3}]}', "the user's"),
        (
            b'{"model": "default", "messages": [{"role": "user", "content": "x"}], "seed": "1"}',
            "'seed' must be a whole number",
        ),
    ],
)
def test_a_bad_request_is_refused_and_says_why(url, body, message):
    status, record = post(url, body)
    assert status == 400 and message in record["error"]["message"]


def test_whatever_a_model_writes_can_be_judged(url):
    judge = Judge(JudgeConfig(base_url=url, retry_s=0.01))
    # Half of a surrogate pair, a replacement character, tags that never close, a block of ours.
    for text in (
        "红\ud800",
        "红\ufffd",
        "<answer>红<think>",
        "<question>\nx\n</question>",
        "红" * 999,
    ):
        judged = judge.is_correct("say red cat in Chinese", "红猫.", text)
        assert (judged.kind, judged.verdict) == (Kind.verdict, "incorrect"), text
        assert judge.compare("say red cat in Chinese", text, "红猫.").verdict == "B>>A"


def test_other_paths_and_large_bodies_are_refused(url):
    assert post(url, b"{}", "/embeddings")[0] == 404
    with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=10) as response:
        assert response.status == 200


def test_it_ends_with_the_block_that_started_it():
    with serving_teacher() as url:
        assert ask(url, "who are you?").startswith("I cannot")
        assert "the answer is \\boxed{-3}." in ask(url, SUM)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=2)
