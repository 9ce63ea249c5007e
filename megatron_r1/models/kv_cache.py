"""Keys and values of running sequences, one row each, for the layers of this pipeline stage."""

from __future__ import annotations

import torch
from torch import Tensor


class KvCache:
    """Rows of `max_context` columns; each column holds what a family's attention stores of one
    token.

    DeepSeek-V3 stores the normalised latent and the rotated shared key, K = kv_lora_rank +
    qk_rope_head_dim (V2 report, arXiv:2405.04434, section 2.1); grouped-query attention stores the
    rotated keys and the values of this rank's heads.
    """

    def __init__(
        self,
        *,
        layer_numbers: list[int],
        num_rows: int,
        max_context: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`layer_numbers`: Megatron's global, 1-based numbers of this stage's layers."""
        self._index = {number: i for i, number in enumerate(layer_numbers)}
        shape = (len(layer_numbers), num_rows, max_context, width)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)

    def write(
        self, layer_number: int, rows_T: Tensor, positions_T: Tensor, values_TK: Tensor
    ) -> None:
        """Store one column per token."""
        self._memory[self._index[layer_number], rows_T, positions_T] = values_TK

    def read(self, layer_number: int, num_rows: int, num_columns: int) -> Tensor:
        """A view of the first rows and columns of a layer: [rows, columns, K]."""
        return self._memory[self._index[layer_number], :num_rows, :num_columns]

    def copy_rows(self, sources: Tensor, targets: Tensor, num_columns: int) -> None:
        """Copy the first columns of some rows to others, in all layers. The two do not overlap."""
        self._memory[:, targets, :num_columns] = self._memory[:, sources, :num_columns]
