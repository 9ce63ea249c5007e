"""Random rollouts in two layouts: ours, packed, and that of TRL and verl, padded.

The peers are not dependencies. Tests import them where they are installed, or from the directory
that MEGATRON_R1_PEERS names:

    pip install --no-deps --target DIR trl==1.16.0 accelerate datasets pandas pyarrow multiprocess \
        dill xxhash
    pip install --no-deps --target DIR verl==0.9.1 ray "tensordict<=0.10" codetiming msgpack \
        pyvers cloudpickle
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

from megatron_r1.algos.reduce import token_weight
from megatron_r1.config.algo import LossReduction
from megatron_r1.types import LossOutput, MicroBatch

LENGTHS = (3, 9, 5, 12, 2, 7, 1, 8)
GROUP_SIZE = 4
MAX_LENGTH = 12
CLOSE = dict(rtol=1e-6, atol=1e-6)


def peer(name: str, version: str) -> ModuleType:
    """Import a module of a peer; skip, by its name, where the peer is absent."""
    directory = os.environ.get("MEGATRON_R1_PEERS")
    if directory and directory not in sys.path:
        sys.path.append(directory)
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{package} {version} cannot be imported: {error}", allow_module_level=True)
    return module


@dataclass(frozen=True)
class Sample:
    """N rollouts of two groups, padded to L; all in float64."""

    logprobs_NL: Tensor
    """Requires a gradient."""
    old_NL: Tensor
    ref_NL: Tensor
    mask_NL: Tensor
    """1.0 at response tokens."""
    advantages_N: Tensor
    rewards_N: Tensor

    def packed(self, reduction: LossReduction) -> tuple[Tensor, MicroBatch]:
        """logprobs_T and the micro-batch: each rollout behind one token of prompt."""
        total = sum(LENGTHS)
        weights_N = torch.tensor(
            [
                token_weight(
                    length,
                    reduction=reduction,
                    num_rollouts=len(LENGTHS),
                    total_tokens=total,
                    max_response_tokens=MAX_LENGTH,
                )
                for length in LENGTHS
            ],
            dtype=torch.float64,
        )
        mask_T = self._pack(self.mask_NL) > 0
        micro = MicroBatch(
            tokens_T=torch.zeros(len(mask_T), dtype=torch.int64),
            positions_T=torch.cat([torch.arange(1 + length) for length in LENGTHS]),
            seq_lengths=tuple(1 + length for length in LENGTHS),
            num_padding=0,
            loss_mask_T=mask_T,
            weights_T=self._pack(weights_N[:, None] * self.mask_NL),
            advantages_T=self._pack(self.advantages_N[:, None] * self.mask_NL),
            labels_T=torch.zeros(len(mask_T)),
            logprobs_rollout_T=self._pack(self.old_NL),
            logprobs_old_T=self._pack(self.old_NL),
            logprobs_ref_T=self._pack(self.ref_NL),
            values_old_T=self._pack(self.old_NL),
            returns_T=self._pack(self.ref_NL),
        )
        return self._pack(self.logprobs_NL), micro

    def _pack(self, values_NL: Tensor) -> Tensor:
        prompt = values_NL.new_zeros(1)
        rows = zip(values_NL, LENGTHS, strict=True)
        return torch.cat([part for row, length in rows for part in (prompt, row[:length])])

    def gradient(self, loss: Tensor | LossOutput) -> Tensor:
        """Of a loss with respect to logprobs_NL."""
        loss = loss.loss if isinstance(loss, LossOutput) else loss
        return torch.autograd.grad(loss, self.logprobs_NL)[0]


def sample(seed: int = 0, *, drift: float = 0.4) -> Sample:
    """`drift` is the scale of log(pi / pi_old) of a token."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(LENGTHS), MAX_LENGTH)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old_NL = -1.5 + 0.4 * noise(*size)
    lengths_N1 = torch.tensor(LENGTHS)[:, None]
    return Sample(
        logprobs_NL=(old_NL + drift * noise(*size)).requires_grad_(),
        old_NL=old_NL,
        ref_NL=old_NL + 0.3 * noise(*size),
        mask_NL=(torch.arange(MAX_LENGTH) < lengths_N1).double(),
        advantages_N=noise(len(LENGTHS)),
        rewards_N=noise(len(LENGTHS)),
    )
