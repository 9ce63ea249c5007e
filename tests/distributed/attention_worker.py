"""One context rank that attends in both ways: by Transformer Engine, or on a CPU by what stands in
for it, and by PyTorch.

main(DIR) leaves DIR/RANK.json: how far the one is from the other, relative to the largest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_r1.platform.host import Host, prepare, start_process_group, stop_process_group

LENGTHS = (70, 1, 300, 29, 5)
"""None is a multiple of the chunks."""
SCALE = 0.1
KINDS = {
    "grouped queries": ("tiny_dense", []),
    # The widths of DeepSeek-V3's heads.
    "latent": (
        "tiny_v3",
        ["model.qk_nope_head_dim=128", "model.qk_rope_head_dim=64", "model.v_head_dim=128"],
    ),
}


def main(path: str) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    gaps = {name: gaps_of(host, model, widths) for name, (model, widths) in KINDS.items()}
    Path(path, f"{dist.get_rank()}.json").write_text(json.dumps(gaps))
    stop_process_group()


def gaps_of(host: Host, model: str, widths: list[str]) -> dict[str, float]:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_r1.config.load import load_config
    from megatron_r1.models.core_attention import PackedAttention, PlainAttention
    from megatron_r1.models.specs import transformer_config
    from megatron_r1.models.stream import TokenStream
    from megatron_r1.parallel.context import ContextShard
    from megatron_r1.parallel.layout import enter_layout

    config = load_config([f"model={model}", *widths, f"parallel.context={dist.get_world_size()}"])
    layout = enter_layout(config.parallel, seed=1)
    dtype = torch.bfloat16 if host.is_cuda else torch.float32
    megatron = transformer_config(config.model, config.parallel, dtype, config.precision)
    num_heads, num_groups = megatron.num_attention_heads, megatron.num_query_groups
    is_latent = megatron.multi_latent_attention
    key_width = 192 if is_latent else megatron.kv_channels
    value_width = 128 if is_latent else key_width
    packed = PackedAttention(
        attend=attend_of(host),
        config=megatron,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        k_channels=key_width,
        v_channels=value_width,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(["tp", "cp"]),
        softmax_scale=SCALE,
    )
    # Filled up at its end: tokens of no sequence.
    shard = ContextShard.of(LENGTHS, layout.cp, pad_to_multiple=64, device=host.device)
    stream = TokenStream(seq_lengths=LENGTHS, context=shard)
    positions = torch.cat([torch.arange(n, device=host.device) for n in LENGTHS])
    stream.positions_T = stream.take(positions, fill=0)
    draw = torch.Generator().manual_seed(0)
    shapes = ((num_heads, key_width), (num_groups, key_width), (num_groups, value_width))
    shapes += ((num_heads, value_width),)
    q, k, v, grad = (
        shard.take(torch.randn(sum(LENGTHS), *shape, generator=draw).to(host.device, dtype), fill=0)
        for shape in shapes
    )
    found = [
        taken_back(attend, (q, k, v), grad, stream)
        for attend in (packed, PlainAttention(softmax_scale=SCALE))
    ]
    return {
        name: float((one - other).abs().max() / other.abs().max())
        for name, one, other in zip(("out", "q", "k", "v"), *found, strict=True)
    }


def attend_of(host: Host) -> type:
    if host.is_cuda:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return TEDotProductAttention
    from tests.models.packed_stand_in import PackedStandIn

    return PackedStandIn


def taken_back(
    attend: torch.nn.Module, inputs: tuple[Tensor, ...], grad: Tensor, stream: Any
) -> list[Tensor]:
    """Output and gradients, of the tokens of sequences."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = attend(*inputs, stream)
    assert out.shape == grad.shape
    out.backward(grad)  # 0 where no sequence is
    is_token = stream.context.own_t >= 0
    return [x[is_token].float() for x in (out.detach(), *(x.grad for x in inputs))]
