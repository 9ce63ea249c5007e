"""The teacher and judge of the tiny world: a script that knows its grammar, not a language model.

In the paper DeepSeek-V3 rewrites chains of thought and compares answers. Here a question is parsed,
so that what is right is known, and the reply follows from rules. The teacher is meant to be like a
model in two respects: what it rewrites keeps some of the writer's habits, and it declines what it
cannot parse. `server.py` puts it behind the same HTTP interface that a model has.
"""

from __future__ import annotations

import json
import random
import re

from megatron_r1.data.templates import ANSWER
from megatron_r1.data.tiny_world.requests import Request, parse_request
from megatron_r1.data.tiny_world.sums import (
    Sum,
    parse_sum,
    read_steps,
    readable_thought,
    response,
    right_steps,
    summary,
)
from megatron_r1.rewards.extract import extract_answer
from megatron_r1.rewards.reasoning import final_part_of, reasoning_of

KEPT_OTHER_FRAC = 0.2
"""Chance that a sentence of the teacher is in the other language: it tidies well, and translates
most."""
CANNOT_REWRITE = "I cannot rewrite this."
CANNOT_JUDGE = "I cannot judge this."
_TAG = re.compile(r"</?(?:think|answer)>|\(/?answer\)")
"""Of an answer inside a judge's prompt, where the judge has turned brackets into parentheses."""


def reply_to(prompt: str, seed: int) -> str:
    """What the teacher says to a user's message; the same for the same message and seed.

    What stands with the last question tells what is asked: two answers are compared, an answer is
    checked against a reference, a response is rewritten, an answer alone is given a thought. A
    question alone is answered.
    """
    questions = _blocks(prompt, "question")
    if not questions:
        return answer_question(prompt, seed)
    at, question = questions[-1]
    rest = prompt[at:]
    answer_a, answer_b = _last(rest, "answer_of_assistant_A"), _last(rest, "answer_of_assistant_B")
    if answer_a is not None and answer_b is not None:
        return compare(question, answer_a, answer_b)
    written = _last(rest, "response")
    if written is not None:
        return rewrite(question, written, seed)
    reference, answer = _last(rest, "reference_answer"), _last(rest, "answer")
    if answer is None:
        return answer_question(question, seed)
    return think_first(question, seed) if reference is None else check(question, reference, answer)


def rewrite(question: str, written: str, seed: int) -> str:
    """The readable pattern: the writer's own steps, a sentence each, then a summary.

    Steps that do not add up, and a chain that is none, are declined.
    """
    asked = parse_sum(question)
    steps = read_steps(reasoning_of(written).strip())
    if asked is None or steps is None or not all(step.is_right for step in steps):
        return CANNOT_REWRITE
    if steps != right_steps(asked):
        return CANNOT_REWRITE
    return _tidy_response(asked, random.Random(f"{seed}/{question}/{written}"))


def answer_question(question: str, seed: int) -> str:
    """A model answer to a sum or a request."""
    asked = parse_sum(question)
    if asked is not None:
        return _tidy_response(asked, random.Random(f"{seed}/{question}"))
    request = parse_request(question)
    if request is None:
        return "I cannot answer this."
    answer = request.reference
    if not request.is_harmful:
        answer += f" {request.tongue.offer}{request.tongue.stop}"
    return response(request.thought, answer)


def think_first(question: str, seed: int) -> str:
    """The thought that leads to a model answer."""
    return reasoning_of(answer_question(question, seed)).strip()


def check(question: str, reference: str, answer: str) -> str:
    """Listing 4's JSON: whether an answer says what the reference says, offers left aside."""
    request = parse_request(question)
    said = _plain(answer)
    if request is not None and request.is_harmful:
        is_right = _refuses(said, request)
    elif request is not None:
        is_right = _content_of(said, request) == _content_of(_plain(reference), request)
    else:
        is_right = _number_of(answer) == _number_of(reference) is not None
    verdict = "correct" if is_right else "incorrect"
    analysis = f"it says {said[:60]!r}, the reference {reference.strip()[:60]!r}"
    return json.dumps({"analysis": analysis, "correctness": verdict}, ensure_ascii=False)


def compare(question: str, answer_a: str, answer_b: str) -> str:
    """One of Arena-Hard's verdicts, by points."""
    request = parse_request(question)
    if request is None:
        return CANNOT_JUDGE
    points_a, points_b = _points(request, answer_a), _points(request, answer_b)
    verdict = {2: "A>>B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B>>A"}[
        max(-2, min(2, points_a - points_b))
    ]
    return f"A has {points_a} points and B {points_b}. [[{verdict}]]"


def _points(request: Request, answer: str) -> int:
    """0 for a wrong answer; of right ones 3 with an offer, 2 without, 1 with several."""
    said = _plain(answer)
    if request.is_harmful:
        return 2 if _refuses(said, request) else 0
    if _content_of(said, request) != _content_of(request.reference, request):
        return 0
    return {0: 2, 1: 3}.get(said.count(request.tongue.offer), 1)


def _refuses(said: str, request: Request) -> bool:
    """A refusal, and nothing of how the deed is done; offers do not matter."""
    how = request.tongue.how_to_answer.partition("{}")[0]
    return request.tongue.refusal in said and how.strip() not in said


def _content_of(said: str, request: Request) -> str:
    """What is said besides the offer, without stops."""
    said = said.replace(request.tongue.offer, " ")
    return " ".join(re.sub(r"[.。]", " ", said).split())


def _tidy_response(asked: Sum, rng: random.Random) -> str:
    thought = readable_thought(right_steps(asked), asked.tongue, KEPT_OTHER_FRAC, rng)
    return response(thought, summary(asked.total, asked.tongue))


def _plain(answer: str) -> str:
    return _TAG.sub(" ", final_part_of(answer)).strip()


def _number_of(text: str) -> str | None:
    found = extract_answer(text)[0] if "\\boxed" in text or ANSWER in text else _plain(text)
    number = re.fullmatch(r"-?\d+", (found or "").strip(" .。"))
    return number.group() if number else None


def _blocks(prompt: str, name: str) -> list[tuple[int, str]]:
    """Where each block of this name ends, and what it holds."""
    found = re.finditer(rf"<{name}>\n?(.*?)\n?</{name}>", prompt, re.DOTALL)
    return [(block.end(), block.group(1)) for block in found]


def _last(text: str, name: str) -> str | None:
    """The last block of this name: a response is in tags that are blocks themselves."""
    blocks = _blocks(text, name)
    return blocks[-1][1] if blocks else None
