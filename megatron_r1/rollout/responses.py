"""One response over HTTP: what is asked of a server, and what its answer means. No network here."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from megatron_r1.config.model import MixtureConfig
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.sampling import stream_key
from megatron_r1.types import FinishReason, Prompt, Rollout, VersionSpan
from megatron_r1.weights.labels import version_of

Json = dict[str, Any]

OLDEST_SGLANG = "0.5.23"
"""Tells which tokens were sampled from which weights."""


@dataclass(frozen=True)
class ResponseRequest:
    """One sample of one prompt."""

    prompt_index: int
    prompt: Prompt
    sample: int


class UnusableAnswerError(Exception):
    """An answer that is not what was asked for, or a response that the server gave up. Says why."""


def request_body(
    request: ResponseRequest,
    params: SamplingParams,
    *,
    request_id: str,
    stop_id: int,
    keyed_sampling: bool,
    routed_experts: bool,
    masks_of: int | None = None,
) -> Json:
    """The JSON of SGLang's /generate.

    Args:
        masks_of: the size of the vocabulary, where the tokens that were left are to be told.
    """
    sampling: Json = {
        "max_new_tokens": params.max_response_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or masks_of or -1,  # without a number it tells no masks
        "stop_token_ids": [stop_id],
    }
    if keyed_sampling:
        # SGLang takes a signed number of 64 bits.
        key = stream_key(params.seed, request.prompt.draw, request.sample)
        sampling["sampling_seed"] = key >> 1
    body: Json = {
        "rid": request_id,
        "input_ids": list(request.prompt.token_ids),
        "sampling_params": sampling,
        "return_logprob": True,
    }
    if routed_experts:
        body["return_routed_experts"] = True
    if masks_of is not None:
        body["return_sampling_mask"] = True
    return body


def read_response(
    answer: Any,
    request: ResponseRequest,
    params: SamplingParams,
    *,
    tokenizer: Tokenizer,
    owner: str,
    vocab_size: int,
    experts_of: MixtureConfig | None = None,
    sampling_masks: bool = False,
) -> Rollout:
    """The rollout of an answer, after a look at whether it can be one.

    Args:
        owner: whose weights it must have been sampled from.
        vocab_size: token ids are below it.
        experts_of: the model, where experts of tokens were asked for.
    Raises:
        UnusableAnswerError: fields are missing or do not agree with each other, or the server ended
            the response before its time.
        ForeignWeightsError: from weights of another owner.
    """
    try:
        meta = answer["meta_info"]
        token_ids = tuple(int(token) for token in answer["output_ids"])
        reason = str(meta["finish_reason"]["type"])
        pairs = [
            (float(logprob), int(token)) for logprob, token, *_ in meta["output_token_logprobs"]
        ]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UnusableAnswerError(
            f"{type(error).__name__}: {error} in {str(answer)[:300]}"
        ) from error
    if reason not in FinishReason.__members__:
        raise UnusableAnswerError(f"finish_reason {meta['finish_reason']}")
    if reason == "length" and len(token_ids) != params.max_response_tokens:
        raise UnusableAnswerError(
            f"cut off after {len(token_ids)} of {params.max_response_tokens} tokens: the server's "
            "context is too short"
        )
    if not token_ids or tuple(token for _, token in pairs) != token_ids:
        raise UnusableAnswerError(
            f"{len(token_ids)} tokens with log-probabilities of {len(pairs)} others"
        )
    labels = _labels(meta)
    _check_spans([ends for _, *ends in labels], len(token_ids))
    logprobs, kept = [logprob for logprob, _ in pairs], None
    if sampling_masks:
        logprobs, kept = _among_kept(meta, token_ids)
    _check_tokens(chain(token_ids, *(kept or ())), vocab_size)
    if not all(logprob <= 1e-6 and math.isfinite(logprob) for logprob in logprobs):
        raise UnusableAnswerError("a log-probability is above 0 or not finite")
    spans = tuple(VersionSpan(version_of(label, owner), *ends) for label, *ends in labels)
    return Rollout(
        sample=request.sample,
        token_ids=token_ids,
        logprobs=tuple(logprobs),
        finish_reason=FinishReason(reason),
        weight_version=spans[-1].version,
        text=tokenizer.decode(token_ids),
        version_spans=spans if len(spans) > 1 else (),
        kept_tokens=kept,
        routed_experts=_routed_experts(meta, request, len(token_ids), experts_of),
    )


def _labels(meta: Json) -> list[tuple[Any, int, int]]:
    """Names of weights, and where the tokens begin and end that were sampled from them."""
    found = meta.get("weight_versions")
    if found is None:
        raise UnusableAnswerError(f"no weight_versions: SGLang {OLDEST_SGLANG} and newer tell them")
    try:
        return [(span["version"], int(span["start"]), int(span["end"])) for span in found]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UnusableAnswerError(f"weight_versions: {error!r} in {str(found)[:300]}") from error


def _check_spans(spans: Sequence[Sequence[int]], num_tokens: int) -> None:
    """Each begins where the one before it ends, and together they are the response."""
    starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
    follow = starts == [0, *stops[:-1]] and stops[-1:] == [num_tokens]
    if not follow or any(start >= stop for start, stop in spans):
        raise UnusableAnswerError(f"weight_versions of {spans} in {num_tokens} tokens")


def _check_tokens(token_ids: Iterable[int], vocab_size: int) -> None:
    strange = [token for token in token_ids if not 0 <= token < vocab_size]
    if strange:
        raise UnusableAnswerError(f"token {strange[0]} of a vocabulary of {vocab_size}")


def _among_kept(
    meta: Json, token_ids: tuple[int, ...]
) -> tuple[list[float], tuple[tuple[int, ...], ...]]:
    """Log-probabilities among the tokens that were left to choose from, and those."""
    try:
        kept = tuple(tuple(map(int, mask)) for mask in meta["output_token_sampling_mask"])
        logprobs = [float(logprob) for logprob in meta["output_token_sampling_logprobs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableAnswerError(f"sampling masks: {error!r}") from error
    if not len(kept) == len(logprobs) == len(token_ids) or any(
        token not in mask for token, mask in zip(token_ids, kept, strict=True)
    ):
        raise UnusableAnswerError("a token is not among those that were left to choose from")
    return logprobs, kept


def _routed_experts(
    meta: Json, request: ResponseRequest, num_tokens: int, model: MixtureConfig | None
) -> np.ndarray | None:
    if model is None:
        return None
    num_passes = len(request.prompt.token_ids) + num_tokens - 1
    try:
        flat = np.frombuffer(base64.b64decode(meta["routed_experts"]), np.int32)
        found = flat.reshape(num_passes, model.num_layers, model.experts_per_token)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableAnswerError(f"routed experts: {error!r}") from error
    sparse = found[:, model.num_dense_layers :]
    strange = sparse[(sparse < 0) | (sparse >= model.num_experts)]
    if strange.size:
        raise UnusableAnswerError(
            f"routed experts: {strange[0]}, and the model has 0 to {model.num_experts - 1}"
        )
    return found
