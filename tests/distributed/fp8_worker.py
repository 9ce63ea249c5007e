"""One rank of a pair of FP8 linears, split over the tensor ranks as in an MLP.

main(DIR, WIDTHS, SEQUENCE) leaves DIR/WIDTH_SEQUENCE_RANK.pt for each: outputs and gradients, this
rank's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_r1.platform.host import prepare, start_process_group, stop_process_group

NUM_TOKENS, WIDTH = 130, 256


def main(path: str, widths: Sequence[int], sequence: bool) -> None:
    start_process_group(prepare(), timeout_minutes=5)
    world_size = dist.get_world_size()
    for width in widths:
        found = parts(width, world_size, sequence=sequence and world_size > 1)
        torch.save(found, Path(path) / f"{width}_{sequence}_{dist.get_rank()}_{world_size}.pt")
    stop_process_group()


def parts(inner: int, tensor: int, *, sequence: bool) -> dict[str, Tensor]:
    """Of y = B silu(A x), with A of `inner` outputs: what this rank holds."""
    from megatron_r1.config.load import load_config
    from megatron_r1.models.fp8_linear import Fp8ColumnLinear, Fp8Recipe, Fp8RowLinear
    from megatron_r1.models.specs import transformer_config
    from megatron_r1.parallel.layout import enter_layout

    overrides = ["model=tiny_dense", "rollout.max_response_tokens=64"]
    overrides += [f"parallel.tensor={tensor}", f"parallel.sequence={str(sequence).lower()}"]
    config = load_config(overrides)
    layout = enter_layout(config.parallel, seed=1)
    # In float32 a product differs between layouts by the order of its additions alone.
    megatron = transformer_config(
        config.model, config.parallel, torch.float32, config.precision, grouped_experts=False
    )
    megatron.perform_initialization, megatron.use_cpu_initialization = False, True
    how = dict(config=megatron, init_method=None, bias=False, skip_bias_add=False, is_expert=False)
    # Scales of powers of two would hide where a tile lies: they change no digit of a number.
    how |= dict(recipe=Fp8Recipe(power_of_two=False), tp_group=layout.tp.group)
    first = Fp8ColumnLinear(WIDTH, inner, gather_output=False, **how)
    second = Fp8RowLinear(inner, WIDTH, input_is_parallel=True, **how)
    draw = torch.Generator().manual_seed(0)
    whole_first, whole_second = (
        torch.randn(shape, generator=draw) for shape in ((inner, WIDTH), (WIDTH, inner))
    )
    x, grad = (torch.randn(NUM_TOKENS, 1, WIDTH, generator=draw) for _ in range(2))
    rank = layout.tp.rank
    if sequence:
        x, grad = (tensor.chunk(layout.tp.size)[rank] for tensor in (x, grad))
    x = x.clone().requires_grad_()
    with torch.no_grad():
        first.weight.copy_(whole_first.chunk(layout.tp.size, dim=0)[rank])
        second.weight.copy_(whole_second.chunk(layout.tp.size, dim=1)[rank])
    y, _ = second(torch.nn.functional.silu(first(x)[0]))
    y.backward(grad)
    return dict(y=y.detach(), x=x.grad, first=first.weight.grad, second=second.weight.grad)
