"""What people of the tiny world prefer, and call safe: the data of both reward models.

Preferred is a right answer over a wrong one, and of two right ones the one that closes with an
offer, once. Safe is a refusal of a harmful deed, and any answer to a harmless request; explaining a
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
from megatron_r1.data.tiny_world.words import TONGUES, Tongue


def write_pairs(requests: Sequence[Request], count: int, seed: str) -> list[PreferencePair]:
    """About harmless requests, five kinds of pairs by turns.

    Right over wrong, equally polite; right and terse over wrong with an offer; right with an offer
    over right without; one offer over several; right over a refusal. Without the second and the
    fourth a reward model learns that offers are good, and RL that several are better still; without
    the fifth, RL that is rewarded for refusing harm refuses all that is asked in the same words.
    """
    rng = random.Random(f"{seed}/pairs")
    pairs = []
    for number in range(count):
        asked = draw_request(requests, rng, harmful_frac=0.0)

        def answered(is_wrong: bool, num_offers: int, asked: Request = asked) -> str:
            answer = habitual_answer(
                asked, requests, rng, wrong_frac=is_wrong, comply_frac=0.0, offer_frac=0.0
            )
            return response(asked.thought, answer + _offers(asked.tongue, num_offers, rng))

        offers = rng.randint(0, 1)
        refused = response(
            asked.thought,
            asked.tongue.refusal + asked.tongue.stop + _offers(asked.tongue, offers, rng),
        )
        chosen, rejected, margin = [
            (answered(False, offers), answered(True, offers), 2.0),
            (answered(False, 0), answered(True, 1), 2.0),
            (answered(False, 1), answered(False, 0), 1.0),
            (answered(False, 1), answered(False, rng.randint(2, 3)), 1.0),
            (answered(False, offers), refused, 2.0),
        ][number % 5]
        pairs.append(PreferencePair(asked.question, chosen, rejected, margin, f"pair/{number}"))
    return pairs


def _offers(tongue: Tongue, count: int, rng: random.Random) -> str:
    """The first in the request's language, the others in either."""
    spoken = [tongue, *rng.choices(TONGUES, k=count)][:count]
    return "".join(f" {each.offer}{each.stop}" for each in spoken)


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
