"""The names that SGLang imports from its CPU kernels, which no package registry holds.

Their only callers are speculative decoding and, for a hash, sampling with a seed of the request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__version__ = "0.0.0+stand.in"

_WORD = 0xFFFFFFFF


def __getattr__(name: str) -> Any:
    if not name.endswith("_cpu"):
        raise AttributeError(f"sgl_kernel has no {name}: it is stood in for here")

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise NotImplementedError(f"{name}: there is no speculative decoding on a CPU")

    return refuse


def _murmur_hash32(seed: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """MurmurHash3 (x86, 32 bit, seed 0) of a request's seed, a position and a token.

    Args:
        seed: int64, one a request; its two halves are two words of the key.
        positions: one a request.
        columns: token ids.
    Returns: [requests, tokens], uint32, computed in int64 since torch shifts no other words.
    """
    seed, positions, columns = (x.to(torch.int64) for x in (seed, positions, columns))
    words = (seed[:, None], seed[:, None] >> 32, positions[:, None], columns[None])
    state = torch.zeros_like(seed[:, None])
    for word in words:
        scrambled = _rotate((word & _WORD) * 0xCC9E2D51 & _WORD, 15) * 0x1B873593 & _WORD
        state = _rotate(state ^ scrambled, 13) * 5 + 0xE6546B64 & _WORD
    state = state ^ 4 * len(words)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & _WORD
    return (state ^ state >> 16).to(torch.uint32)


def _rotate(word: Tensor, bits: int) -> Tensor:
    return (word << bits | word >> 32 - bits) & _WORD


_library = torch.library.Library("sgl_kernel", "FRAGMENT")
_library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor col_indices) -> Tensor")
_library.impl("murmur_hash32_cpu", _murmur_hash32, "CPU")
