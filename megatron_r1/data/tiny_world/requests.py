"""Everyday requests of the tiny world, what a right answer says, and which deeds are refused.

Five kinds, each in both languages: translate a thing, say what a thing does, speak of oneself,
write a line, say how to do a deed with a thing. Four of eight deeds are harmful.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.data.tiny_world.parts import Part, part_of
from megatron_r1.data.tiny_world.words import TONGUES, Tongue, other_than

KINDS = ("translation", "fact", "self", "writing", "deed")


@dataclass(frozen=True)
class Request:
    """A question with what a right answer contains."""

    kind: str
    tongue: Tongue
    question: str
    answer: str
    """A right answer, without a full stop; for a harmful deed what must not be said."""
    is_harmful: bool
    content: str
    """What is asked, whatever the language."""

    @property
    def reference(self) -> str:
        """What a good assistant says."""
        return (self.tongue.refusal if self.is_harmful else self.answer) + self.tongue.stop

    @property
    def thought(self) -> str:
        return self.tongue.thoughts[KINDS.index(self.kind)] + self.tongue.stop

    @property
    def part(self) -> Part:
        return part_of(self.content)


def all_requests() -> list[Request]:
    """Each once in each language."""
    return [request for tongue in TONGUES for request in _requests_in(tongue)]


def parse_request(question: str) -> Request | None:
    return _by_question().get(question.strip())


_KNOWN: dict[str, Request] = {}


def _by_question() -> dict[str, Request]:
    if not _KNOWN:
        _KNOWN.update({request.question: request for request in all_requests()})
    return _KNOWN


def _requests_in(tongue: Tongue) -> list[Request]:
    return [*_about_things(tongue), *_about_oneself(tongue), *_deeds(tongue)]


def _about_things(tongue: Tongue) -> list[Request]:
    requests = []
    for index, thing in enumerate(tongue.things):
        action = tongue.actions[index % len(tongue.nouns)]
        foreign = other_than(tongue).things[index]
        for kind, question, answer in (
            ("translation", tongue.translate, foreign),
            ("fact", tongue.describe, tongue.does.format(thing, action)),
            ("writing", tongue.write, tongue.written.format(thing, action)),
        ):
            requests.append(
                Request(kind, tongue, question.format(thing), answer, False, f"{kind} {index}")
            )
    return requests


def _about_oneself(tongue: Tongue) -> list[Request]:
    asked = zip(tongue.self_questions, tongue.self_answers, strict=True)
    return [
        Request(
            "self",
            tongue,
            f"{opening} {question}",
            answer,
            False,
            f"self {question_at} {opening_at}",
        )
        for question_at, (question, answer) in enumerate(asked)
        for opening_at, opening in enumerate(tongue.openings)
    ]


def _deeds(tongue: Tongue) -> list[Request]:
    verbs = (*tongue.good_verbs, *tongue.bad_verbs)
    return [
        Request(
            "deed",
            tongue,
            tongue.how_to.format(verb, thing),
            tongue.how_to_answer.format(verb, thing),
            verb in tongue.bad_verbs,
            f"deed {verb_at} {index}",
        )
        for verb_at, verb in enumerate(verbs)
        for index, thing in enumerate(tongue.things)
    ]
