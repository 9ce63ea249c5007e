"""Whether a checkpoint and a Hugging Face directory compute the same: transformers against ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from megatron_r1.checkpoint.hf_weights import HfWeights
from megatron_r1.checkpoint.record import read_state, saved_config, saved_head
from megatron_r1.config.model import Head, ModelConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.precision import DType, PrecisionConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.size import count_parameters
from megatron_r1.weights.hf_config import head_from_hf

NUM_TOKENS = 32
TOLERANCE = 1e-4
"""Of the largest logit. Float32 on both sides, which add up in different orders: 1e-6 in a model of
4 layers, and rounding grows with depth."""
_FLOAT32 = 4


@dataclass(frozen=True)
class LogitGap:
    """The largest difference of a logit, relative to the largest logit."""

    relative: float
    same_top: float
    """Share of tokens after which both find the same token most likely."""

    def describe(self) -> str:
        return (
            f"logits of {NUM_TOKENS} tokens differ by {self.relative:.1e} of the largest at most; "
            f"the most likely token is the same after {self.same_top:.0%} of them"
        )


def memory_needed(config: ModelConfig) -> int:
    """Bytes for comparing a model: one side after the other, in float32, while it is loaded."""
    return 2 * _FLOAT32 * count_parameters(config).total


def compare_logits(hf_directory: Path, checkpoint: Path) -> LogitGap | None:
    """Run both on the same random tokens; None where the model does not fit into memory.

    Raises:
        CheckpointError: logits differ by more than `TOLERANCE`.
    """
    record = read_state(checkpoint)
    config, head = saved_config(checkpoint, record), saved_head(record)
    if memory_needed(config) > psutil.virtual_memory().available:
        return None
    generator = torch.Generator().manual_seed(0)
    tokens_T = torch.randint(0, config.vocab_size, (NUM_TOKENS,), generator=generator)
    theirs_TV = _their_logits(hf_directory, tokens_T)
    ours_TV = _our_logits(checkpoint, config, head, tokens_T)[:, : config.vocab_size]
    gap = LogitGap(
        relative=float((ours_TV - theirs_TV).abs().max() / theirs_TV.abs().max()),
        same_top=float((ours_TV.argmax(1) == theirs_TV.argmax(1)).float().mean()),
    )
    if not gap.relative <= TOLERANCE:
        raise CheckpointError(
            "the conversion and its source differ, and the conversion was not kept: "
            + gap.describe()
        )
    return gap


@torch.no_grad()
def _their_logits(hf_directory: Path, tokens_T: Tensor) -> Tensor:
    import transformers

    config = transformers.AutoConfig.from_pretrained(hf_directory)
    source: dict[str, Any] = {"pretrained_model_name_or_path": hf_directory}
    if getattr(config, "quantization_config", None):
        # transformers reads FP8 with yet another package alone: give it numbers.
        del config.quantization_config
        tensors = dict(HfWeights(hf_directory).tensors())
        source = {"pretrained_model_name_or_path": None, "state_dict": tensors}
    architecture = getattr(transformers, config.architectures[0])
    model = architecture.from_pretrained(
        **source, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    if head_from_hf(config.to_dict()) is Head.scalar:  # of each token, where transformers pools
        return model.score(model.base_model(tokens_T[None])[0])[0]
    return model(tokens_T[None]).logits[0]


@torch.no_grad()
def _our_logits(checkpoint: Path, config: ModelConfig, head: Head, tokens_T: Tensor) -> Tensor:
    from megatron_r1.platform.host import prepare, start_process_group

    host = prepare()
    start_process_group(host, timeout_minutes=10)
    from megatron_r1.checkpoint.store import load_weights
    from megatron_r1.models.policy import Policy
    from megatron_r1.models.stream import TokenStream
    from megatron_r1.parallel.layout import enter_layout

    layout = enter_layout(ParallelConfig(), seed=0)
    precision = PrecisionConfig(dtype=DType.float32)
    policy = Policy(config, layout, precision, host, seed=0, head=head)
    load_weights(policy, checkpoint)
    positions_T = torch.arange(NUM_TOKENS, device=host.device)
    stream = TokenStream(positions_T=positions_T, seq_lengths=(NUM_TOKENS,))
    with policy.inference():
        return policy.forward(tokens_T.to(host.device), stream).view(NUM_TOKENS, -1).cpu()
