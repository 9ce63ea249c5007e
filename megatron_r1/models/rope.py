"""Rotary position embedding: a table of angles, indexed by a token's position."""

from __future__ import annotations

import math

import torch
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import YarnRotaryEmbedding
from torch import Tensor

from megatron_r1.config.model import RopeConfig, RopeScaling


class RopeTable:
    """cos and sin of every position up to `max_positions`; float32, [positions, dim / 2]."""

    def __init__(
        self, config: RopeConfig, *, dim: int, max_positions: int, device: torch.device
    ) -> None:
        frequencies, magnitude = _frequencies(config, dim)
        positions = torch.arange(max_positions, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies.to(device))
        self._cos, self._sin = angles.cos() * magnitude, angles.sin() * magnitude

    def at(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos[positions_T], self._sin[positions_T]


def _frequencies(config: RopeConfig, dim: int) -> tuple[Tensor, float]:
    """Radians per position of each channel pair, and the factor on cos and sin."""
    if config.scaling is RopeScaling.yarn:
        embedding = YarnRotaryEmbedding(
            dim,
            rotary_base=config.theta,
            scaling_factor=config.factor,
            original_max_position_embeddings=config.original_max_positions,
            beta_fast=config.beta_fast,
            beta_slow=config.beta_slow,
            mscale=config.mscale,
            mscale_all_dim=config.mscale_all_dim,
            use_cpu_initialization=True,
        )
        angles_at_01, magnitude = embedding.get_emb(2)
        return angles_at_01[1, 0, 0, : dim // 2], magnitude
    frequencies = config.theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if config.scaling is RopeScaling.llama3:
        frequencies = _stretch_llama3(frequencies, config)
    return frequencies, 1.0


def _stretch_llama3(frequencies: Tensor, config: RopeConfig) -> Tensor:
    """Llama 3.1's scaling: pairs that turn less than low_freq_factor times in the original context
    are slowed by the factor, those of more than high_freq_factor turns keep their frequency, and
    those in between are mixed of both, linearly in their turns."""
    turns = config.original_max_positions * frequencies / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / config.factor)


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate pairs of channels by each token's angles; computed in float32.

    `interleaved` pairs channel 2i with 2i + 1, as DeepSeek-V3's weights do. Otherwise channel i
    goes with i + K / 2 (Llama, Qwen).
    """
    x = x_THK.float()
    cos, sin = cos_TK[:, None, :], sin_TK[:, None, :]
    if interleaved:
        # Such pairs are complex numbers in memory; as those they take a sixth of the time.
        pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * torch.complex(cos, sin))
        return rotated.flatten(-2).to(x_THK.dtype)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_THK.dtype)
