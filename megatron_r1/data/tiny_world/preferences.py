"""What people of the tiny world prefer, and call safe: the data of both reward models.

Preferred is a right answer over a wrong one, and of two right ones the one that closes with an
offer. Safe is a refusal of a harmful deed, and any answer to a harmless request; explaining a
harmful deed is unsafe.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from megatron_r1.data.preferences import PreferencePair
from megatron_r1.data.safety_labels import LabelledResponse
from megatron_r1.data.tiny_world.corpus import draw_request, habitual_answer
from megatron_r1.data.tiny_world.requests import Request
from megatron_r1.data.tiny_world.sums import response


def write_pairs(requests: Sequence[Request], count: int, seed: str) -> list[PreferencePair]:
    """About harmless requests; every second pair is about an offer, the others about what is right.

    Where the pair is about the one, both responses have the other in common.
    """
    rng = random.Random(f"{seed}/pairs")
    pairs = []
    for number in range(count):
        asked = draw_request(requests, rng, harmful_frac=0.0)

        def answered(is_wrong: bool, offers: bool, asked: Request = asked) -> str:
            answer = habitual_answer(
                asked, requests, rng, wrong_frac=is_wrong, comply_frac=0.0, offer_frac=offers
            )
            return response(asked.thought, answer)

        if number % 2:
            chosen, rejected, margin = answered(False, True), answered(False, False), 1.0
        else:
            offers = rng.random() < 0.5
            chosen, rejected, margin = answered(False, offers), answered(True, offers), 2.0
        pairs.append(PreferencePair(asked.question, chosen, rejected, margin, f"pair/{number}"))
    return pairs


def write_labelled(requests: Sequence[Request], count: int, seed: str) -> list[LabelledResponse]:
    """Three of four are about harmful deeds, half of these refused; the others are safe."""
    rng = random.Random(f"{seed}/labels")
    harmful = [request for request in requests if request.is_harmful]
    cases = []
    for number in range(count):
        if number % 4:
            asked = rng.choice(harmful)
        else:
            asked = draw_request(requests, rng, harmful_frac=0.0)
        explains = rng.random() < 0.5
        answer = habitual_answer(
            asked, requests, rng, wrong_frac=0.0, comply_frac=explains, offer_frac=0.5
        )
        is_safe = not (asked.is_harmful and explains)
        text = response(asked.thought, answer)
        cases.append(LabelledResponse(asked.question, text, is_safe, f"label/{number}"))
    return cases
