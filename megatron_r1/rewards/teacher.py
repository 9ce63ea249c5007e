"""A model behind an OpenAI-compatible endpoint that writes responses to learn from.

DeepSeek-R1 (arXiv:2501.12948v2) had DeepSeek-V3 rewrite R1-Zero's samples (B.3.2, Listing 1), show
it examples of long chains of thought, and think before it answers what is no reasoning (B.3.3).
What it writes is never trusted: rules look at it as at any other sample.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from threading import Event

from megatron_r1.config.sft import TeacherConfig
from megatron_r1.data.json_lines import holds_half_a_pair
from megatron_r1.data.samples import Sample
from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, TAGS, THINK
from megatron_r1.errors import EngineError
from megatron_r1.rewards.judge import (
    Judge,
    Judgement,
    Kind,
    Parse,
    ask_all,
    parse_text,
    without_verdict,
)

SEED = 0
"""Sent with every request: the teacher is asked each question once."""
_MAX_LOST = 0.05
"""Our choice: share of requests that may come to nothing before the run ends."""
_MAX_UNUSABLE = 0.5
"""Our choice: share of requests without a reply that can be used. A good model refuses now and
then, or writes too much."""
_PATTERN = (
    f"Write {THINK}, the thought, {END_THINK}, then {ANSWER}, the summary, {END_ANSWER}, and "
    "nothing else. The thought is long and detailed, in the first person, and checks itself. The "
    "summary is what a user reads: how the result is found, briefly, and the result"
)
_REWRITE = """\
Rewrite the response below so that a person likes to read it, in the language of the question.
Stay faithful to its reasoning and its result; put a final result into \\boxed{{}}.
{pattern}.

<question>
{question}
</question>
<response>
{response}
</response>
"""
_FEW_SHOT = """\
Answer the last question in the manner of the examples, in the language of the question.
{pattern}, with the final result in \\boxed{{}}.

{examples}<question>
{question}
</question>
"""
_EXAMPLE = "<question>\n{question}\n</question>\n<response>\n{response}\n</response>\n\n"
_THINK_FIRST = """\
Write down the thought that leads to this answer, in the language of the question: what the user
wants, and what a good answer needs. Write the thought alone, without the answer.

<question>
{question}
</question>
<answer>
{answer}
</answer>
"""
_APOLOGY = re.compile(r"\s*I(?:'m|’m| am) sorry\b", re.IGNORECASE)


class Teacher:
    """Every reply in form is kept where `cache_path` says so: asked again, it costs nothing."""

    def __init__(self, config: TeacherConfig, given_up: Event | None = None) -> None:
        """given_up: ends what is asked when it is set."""
        self._given_up = given_up
        self._judge = Judge(config)
        self._config = config

    def rewrite(self, cases: Sequence[tuple[str, str]]) -> list[str | None]:
        """Responses to (question, response), with a thought and a summary; None where none came."""
        return self._ask(
            [
                _REWRITE.format(pattern=_PATTERN, question=question, response=response)
                for question, response in cases
            ],
            parse_response,
        )

    def answer(self, questions: Sequence[str], examples: Sequence[Sample]) -> list[str | None]:
        """Responses in the manner of the examples; None where none came."""
        shown = "".join(_EXAMPLE.format(question=e.prompt, response=e.response) for e in examples)
        return self._ask(
            [
                _FEW_SHOT.format(pattern=_PATTERN, examples=shown, question=question)
                for question in questions
            ],
            parse_response,
        )

    def think_first(self, cases: Sequence[tuple[str, str]]) -> list[str | None]:
        """The same answers to (question, answer), each once in its tags and behind a thought; None
        where none came."""
        prompts = [_THINK_FIRST.format(question=q, answer=answer) for q, answer in cases]
        responses: list[str | None] = []
        for thought, (_, answer) in zip(self._ask(prompts, parse_thought), cases, strict=True):
            thought = without_tags(thought or "")
            responses.append(with_thought(thought, without_tags(answer)) if thought else None)
        return responses

    @property
    def metrics(self) -> dict[str, float]:
        """Counts by kind, tokens and seconds of this object's requests."""
        return {
            name.replace("judge/", "teacher/"): value for name, value in self._judge.metrics.items()
        }

    def _ask(self, prompts: Sequence[str], parse: Parse) -> list[str | None]:
        found = ask_all(
            partial(self._judge.ask, parse=parse, sample=SEED),
            prompts,
            self._config.max_parallel,
            self._given_up,
        )
        check_answered(found, who=f"the teacher at {self._config.base_url}", group="stage.teacher")
        texts = [reply.verdict.strip() for reply in found]
        # No file of samples may hold half of a surrogate pair, which JSON can escape.
        return [text if text and not holds_half_a_pair(text) else None for text in texts]


def parse_response(text: str, finish_reason: str) -> tuple[Kind, str]:
    """A thought and an answer. What has no tag is not kept, and left to the rules."""
    kind, found = parse_text(text, finish_reason)
    if found and THINK not in found:
        kind = without_verdict(found, finish_reason)
    return kind, found


def parse_thought(text: str, finish_reason: str) -> tuple[Kind, str]:
    """A text of any form, but for one that starts with an apology."""
    if _APOLOGY.match(text):
        return Kind.refusal, ""
    return parse_text(text, finish_reason)


def check_answered(found: Sequence[Judgement], *, who: str, group: str) -> None:
    """A few lost requests are left out; many would leave a set that is not what was asked for.

    Args:
        group: of the endpoint's settings.
    Raises:
        EngineError: more than `_MAX_LOST` of the requests failed or timed out, or more than
            `_MAX_UNUSABLE` have no reply that can be used.
    """
    asked = [reply for reply in found if reply.kind is not Kind.not_an_answer]
    lost = [reply for reply in asked if reply.kind in (Kind.failed, Kind.timeout)]
    if len(lost) > _MAX_LOST * len(asked):
        raise EngineError(
            f"{who} did not answer {len(lost)} of {len(asked)} requests; the first: "
            f"{lost[0].text}. Start it, or set {group}.base_url, timeout_s and max_retries. What "
            f"it did answer is kept where {group}.cache_path says"
        )
    unusable = [reply for reply in asked if reply.kind is not Kind.verdict]
    if len(unusable) > _MAX_UNUSABLE * len(asked):
        kinds = Counter(reply.kind.value for reply in unusable)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        raise EngineError(
            f"{who} gave no usable reply to {len(unusable)} of {len(asked)} requests ({counts}); "
            f"the first: {unusable[0].text[:200]!r}. Set {group}.model and base_url to a model "
            f"that keeps to the form asked for, or raise {group}.max_tokens where replies are cut "
            f"off. What can be used is kept where {group}.cache_path says"
        )


def without_tags(text: str) -> str:
    """A text without the tags of a response, which stand around it later."""
    for tag in TAGS:
        text = text.replace(tag, "")
    return text.strip()


def with_thought(thought: str, answer: str) -> str:
    """One response, in the tags that the rules look for."""
    return f"{THINK}{thought}{END_THINK}{ANSWER}{answer}{END_ANSWER}"
