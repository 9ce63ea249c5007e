"""`conf/precision/`: number formats of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DType(Enum):
    """Format of weights and activations. Gradients are reduced and Adam works in float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(kw_only=True)
class PrecisionConfig:
    """`precision=fp32`, the default everywhere, or `precision=bf16`."""

    name: str = "fp32"
    dtype: DType = DType.float32
