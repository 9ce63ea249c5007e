"""What is asked of a server and what its answer is taken for, without one."""

from __future__ import annotations

import base64
import copy
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.responses import (
    ResponseRequest,
    UnusableAnswerError,
    read_response,
    request_body,
)
from megatron_r1.types import FinishReason, Prompt, VersionSpan
from megatron_r1.weights.labels import ForeignWeightsError, make_label, version_of

PROMPT = Prompt("p", 3, "", "", (5, 6, 7), "", "exact")
REQUEST = ResponseRequest(prompt_index=0, prompt=PROMPT, sample=1)
PARAMS = SamplingParams(
    num_samples=2, max_response_tokens=4, temperature=0.9, top_p=0.95, top_k=0, seed=1
)
# int32 of 3 + 3 - 1 passes, one layer, 2 experts
ROUTED = base64.b64encode(bytes(4 * 5 * 1 * 2)).decode()
ANSWER = {
    "output_ids": [8, 9, 0],
    "meta_info": {
        "finish_reason": {"type": "stop", "matched": 0},
        "output_token_logprobs": [[-1.5, 8, None], [-0.5, 9, None], [-2.0, 0, None]],
        "weight_versions": [
            {"version": "40.mine", "start": 0, "end": 1},
            {"version": "41.mine", "start": 1, "end": 3},
        ],
        "routed_experts": ROUTED,
    },
}


class NumberTokenizer:
    def decode(self, ids) -> str:
        return " ".join(map(str, ids))


def read(answer, **changes):
    settings = {"tokenizer": NumberTokenizer(), "owner": "mine", "vocab_size": 10, **changes}
    return read_response(answer, REQUEST, PARAMS, **settings)


def changed(**changes):
    answer = copy.deepcopy(ANSWER)
    for name, value in changes.items():
        (answer if name in answer else answer["meta_info"])[name] = value
    return answer


def test_an_answer_is_a_rollout():
    rollout = read(ANSWER)
    assert rollout.sample == 1 and rollout.token_ids == (8, 9, 0)
    assert rollout.logprobs == (-1.5, -0.5, -2.0)
    assert rollout.finish_reason is FinishReason.stop
    assert rollout.version_spans == (VersionSpan(40, 0, 1), VersionSpan(41, 1, 3))
    assert rollout.weight_version == 41
    assert rollout.text == "8 9 0"
    one = read(changed(weight_versions=[{"version": "40.mine", "start": 0, "end": 3}]))
    assert one.weight_version == 40 and one.version_spans == ()


def spans(*ends: tuple[int, int]) -> list[dict]:
    return [{"version": "40.mine", "start": start, "end": stop} for start, stop in ends]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"output_ids": [8, 9]}, "2 tokens with log-probabilities of 3"),
        ({"output_ids": [8, 9, 1]}, "3 tokens"),
        ({"output_ids": "garbage"}, "ValueError"),
        ({"finish_reason": {"type": "abort", "message": "shutting down"}}, "shutting down"),
        ({"finish_reason": {"type": "length", "length": 3}}, "cut off after 3 of 4 tokens"),
        ({"finish_reason": None}, "TypeError"),
        ({"output_token_logprobs": [[0.5, 8], [-0.5, 9], [-2.0, 0]]}, "above 0"),
        ({"output_token_logprobs": [[float("nan"), 8], [-0.5, 9], [-2.0, 0]]}, "not finite"),
        ({"output_token_logprobs": [[None, 8], [-0.5, 9], [-2.0, 0]]}, "TypeError"),
        ({"output_ids": [float("inf"), 9, 0]}, "OverflowError"),
        ({"weight_versions": []}, "in 3 tokens"),
        ({"weight_versions": [{"start": 0}]}, "weight_versions: KeyError"),
        ({"weight_versions": None}, "no weight_versions: SGLang 0.5.23 and newer"),
        ({"weight_versions": spans((0, 2))}, r"\[\[0, 2\]\] in 3 tokens"),
        ({"weight_versions": spans((1, 3))}, "in 3 tokens"),
        ({"weight_versions": spans((0, 1), (2, 3))}, "in 3 tokens"),
        ({"weight_versions": spans((0, 3), (3, 3))}, "in 3 tokens"),
        (
            {"output_ids": [10, 9, 0], "output_token_logprobs": [[-1, 10], [-1, 9], [-2.0, 0]]},
            "token 10 of a vocabulary of 10",
        ),
    ],
)
def test_what_cannot_be_an_answer_is_refused_with_the_reason(what, said):
    with pytest.raises(UnusableAnswerError, match=said):
        read(changed(**what))


@pytest.mark.parametrize("answer", [None, [], "busy", {"error": "busy"}, {"output_ids": [1]}])
def test_other_json_is_refused(answer):
    with pytest.raises(UnusableAnswerError):
        read(answer)


def mixture(num_layers: int, **changes: int) -> SimpleNamespace:
    sizes = {"experts_per_token": 2, "num_experts": 8, "num_dense_layers": 0}
    return SimpleNamespace(num_layers=num_layers, **sizes | changes)


def test_routed_experts_have_a_row_for_each_pass():
    rollout = read(ANSWER, experts_of=mixture(1))
    assert rollout.routed_experts.shape == (5, 1, 2) and not rollout.routed_experts.any()
    with pytest.raises(UnusableAnswerError, match="routed experts"):
        read(ANSWER, experts_of=mixture(3))


@pytest.mark.parametrize("expert", [-1, 8, 2**16])
def test_an_expert_that_the_model_has_not_is_refused(expert):
    """Replayed, it would be another one, or none."""
    experts = np.zeros((5, 2), np.int32)
    experts[3, 1] = expert
    answer = changed(routed_experts=base64.b64encode(experts.tobytes()).decode())
    with pytest.raises(UnusableAnswerError, match=f"{expert}, and the model has 0 to 7"):
        read(answer, experts_of=mixture(1))
    assert read(answer, experts_of=mixture(1, num_dense_layers=1))  # it has no router


def test_under_a_truncation_probabilities_are_among_what_was_kept():
    masks = {
        "output_token_sampling_mask": [[8, 3], [9], [0, 1, 2]],
        "output_token_sampling_logprobs": [-0.75, 0.0, -1.0],
    }
    rollout = read(changed(**masks), sampling_masks=True)
    assert rollout.kept_tokens == ((8, 3), (9,), (0, 1, 2))
    assert rollout.logprobs == (-0.75, 0.0, -1.0)
    masks["output_token_sampling_mask"] = [[3], [9], [0, 1, 2]]
    with pytest.raises(UnusableAnswerError, match="not among those"):
        read(changed(**masks), sampling_masks=True)
    masks["output_token_sampling_mask"] = [[8, 3], [9], [0, 10]]
    with pytest.raises(UnusableAnswerError, match="token 10 of a vocabulary of 10"):
        read(changed(**masks), sampling_masks=True)
    with pytest.raises(UnusableAnswerError, match="sampling masks: KeyError"):
        read(ANSWER, sampling_masks=True)


def test_labels_tell_version_and_owner():
    assert version_of(make_label(40, "mine"), "mine") == 40
    for foreign in ("40.theirs", "40", "default", "", "x.mine"):
        with pytest.raises(ForeignWeightsError):
            version_of(foreign, "mine")
    with pytest.raises(ForeignWeightsError, match="someone"):
        read(changed(weight_versions=[{"version": "someone", "start": 0, "end": 3}]))


def test_a_request_says_how_to_sample():
    body = request_body(
        REQUEST, PARAMS, request_id="r", stop_id=0, keyed_sampling=True, routed_experts=False
    )
    sampling = body["sampling_params"]
    assert body["input_ids"] == [5, 6, 7] and "return_routed_experts" not in body
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.9, 0.95, -1)
    assert sampling["max_new_tokens"] == 4 and sampling["stop_token_ids"] == [0]
    assert 0 <= sampling["sampling_seed"] < 2**63
    masked = request_body(
        REQUEST,
        PARAMS,
        request_id="r",
        stop_id=0,
        keyed_sampling=True,
        routed_experts=False,
        masks_of=500,
    )
    assert masked["sampling_params"]["top_k"] == 500 and masked["return_sampling_mask"]
    other = ResponseRequest(prompt_index=0, prompt=PROMPT, sample=0)
    seeds = {
        request_body(
            request, PARAMS, request_id="r", stop_id=0, keyed_sampling=True, routed_experts=False
        )["sampling_params"]["sampling_seed"]
        for request in (REQUEST, other)
    }
    assert len(seeds) == 2
