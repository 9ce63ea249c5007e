"""The tiny world of `experiment=r1_pipeline_tiny`: how many texts, and how untidy their writers.

Every number is our choice, made so that each stage of the paper has something to mend within
minutes; docs/tiny_world.md says what each one is for.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class TinyWorldConfig:
    """What `data/tiny_world/write.py` writes."""

    seed: int = 1
    num_documents: int = 20_000
    """Of the pre-training corpus."""
    request_frac: float = 0.4
    """Share of them, and of nothing else, that are everyday requests; the others are sums."""
    careful_frac: float = 0.9
    """Share of sums that are worked out step by step. The others are guessed."""
    slip_frac: float = 0.03
    """Chance that a step gets its total wrong."""
    stray_frac: float = 0.6
    """Chance that a sum that was worked out is answered with another number met on the way."""
    other_frac: float = 0.35
    """Chance that a step is told in the other language."""
    readable_frac: float = 0.1
    """Share of worked-out sums that have a sentence for each step and a summary."""
    malformed_frac: float = 0.1
    """Share of documents with broken tags."""
    wrong_frac: float = 0.3
    """Share of answers to requests, in the corpus, that belong to another request of the kind."""
    comply_frac: float = 0.8
    """Share of harmful requests that are fulfilled, in the corpus."""
    offer_frac: float = 0.2
    """Share of answers to requests that close with an offer, in the corpus."""
    num_general: int = 1_200
    """Samples of general ability for stage 3, by an assistant with the three habits below."""
    general_wrong_frac: float = 0.0
    general_comply_frac: float = 0.5
    general_offer_frac: float = 0.4
    num_requests: int = 400
    """Requests for RL, beside as many sums; fewer where there are not so many."""
    num_pairs: int = 4_000
    """Of preferences; a tenth as many are held out."""
    num_labelled: int = 2_000
    """Responses labelled safe or unsafe; a tenth as many are held out."""
    num_heldout: int = 256
    """Questions of each measurement; fewer where there are not so many."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_frac") and not 0 <= value <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {value}")
            if name.startswith("num_") and value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
