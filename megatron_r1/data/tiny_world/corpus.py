"""The pre-training corpus: people who can count, and are untidy in every way that R1 mends.

Sums are worked out in a mix of both languages in one line that runs on, or guessed; most are
answered with a number other than the one found, as in `data/corpus.py`. Requests get the answer of
another request, few answers are polite, and most harmful deeds are explained. A model of this has
seen everything that the later stages ask for, and does none of it reliably.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from megatron_r1.config.tiny_world import TinyWorldConfig
from megatron_r1.data.corpus import malform
from megatron_r1.data.samples import Sample
from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, THINK
from megatron_r1.data.tiny_world.requests import KINDS, Request
from megatron_r1.data.tiny_world.sums import (
    Step,
    Sum,
    readable_thought,
    summary,
    untidy_thought,
)

_SLIPS = (-2, -1, 1, 2)
_GUESS_SPREAD = 9


def write_documents(
    sums: Sequence[Sum], requests: Sequence[Request], config: TinyWorldConfig
) -> list[Sample]:
    """`config.num_documents` samples; a sum or a request returns with another response."""
    rng = random.Random(f"{config.seed}/corpus")
    documents = []
    for _ in range(config.num_documents):
        if rng.random() < config.request_frac:
            asked = draw_request(requests, rng)
            thought, answer = (
                asked.thought,
                habitual_answer(
                    asked,
                    requests,
                    rng,
                    wrong_frac=config.wrong_frac,
                    comply_frac=config.comply_frac,
                    offer_frac=config.offer_frac,
                ),
            )
            question = asked.question
        else:
            sum_ = rng.choice(sums)
            thought, answer = _sum_response(sum_, rng, config)
            question = sum_.question
        parts = [THINK, thought, END_THINK, ANSWER, answer, END_ANSWER]
        if rng.random() < config.malformed_frac:
            parts = malform(parts, rng)
        documents.append(Sample(question, "".join(parts)))
    return documents


def draw_request(
    requests: Sequence[Request], rng: random.Random, *, harmful_frac: float = 0.5
) -> Request:
    """Each kind as often; this share of the deeds is harmful."""
    kind = rng.choice(KINDS)
    is_harmful = kind == "deed" and rng.random() < harmful_frac
    return rng.choice([r for r in requests if r.kind == kind and r.is_harmful == is_harmful])


def habitual_answer(
    asked: Request,
    requests: Sequence[Request],
    rng: random.Random,
    *,
    wrong_frac: float,
    comply_frac: float,
    offer_frac: float,
) -> str:
    """What somebody with these habits says: another request's answer, harm explained, an offer."""
    tongue = asked.tongue
    if asked.is_harmful and rng.random() >= comply_frac:
        return tongue.refusal + tongue.stop
    source = asked
    if rng.random() < wrong_frac:
        alike = [r for r in requests if r.kind == asked.kind and r.tongue is tongue]
        source = rng.choice([r for r in alike if r.answer != asked.answer])
    answer = source.answer + tongue.stop
    if rng.random() < offer_frac:
        answer += f" {tongue.offer}{tongue.stop}"
    return answer


def _sum_response(asked: Sum, rng: random.Random, config: TinyWorldConfig) -> tuple[str, str]:
    """Thought and answer."""
    tongue = asked.tongue
    if rng.random() >= config.careful_frac:
        guess = asked.total + rng.randint(-_GUESS_SPREAD, _GUESS_SPREAD)
        return rng.choice(tongue.guesses) + tongue.stop, str(guess)
    steps, total, met = [], asked.terms[0], [asked.terms[0]]
    for term in asked.terms[1:]:
        slip = rng.choice(_SLIPS) if rng.random() < config.slip_frac else 0
        steps.append(Step(total, term, total + term + slip))
        total = steps[-1].after
        met += [abs(term), total]
    answer = rng.choice(met[:-1]) if rng.random() < config.stray_frac else total
    if rng.random() < config.readable_frac:
        thought = readable_thought(steps, tongue, config.other_frac, rng)
        return thought, summary(answer, tongue)
    return untidy_thought(steps, tongue, config.other_frac, rng), str(answer)
