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
PASSES = {
    "an update": (True, True),
    "prompts of its own": (False, False),
    "log-probabilities": (True, False),
    "another update": (True, True),
    "an empty step of sampling": (False, False),
}
"""One after another by the same module: whether context ranks share a stream, whether it trains."""


def main(path: str) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    gaps = {name: gaps_of(host, model, widths) for name, (model, widths) in KINDS.items()}
    Path(path, f"{dist.get_rank()}.json").write_text(json.dumps(gaps))
    stop_process_group()


def gaps_of(host: Host, model: str, widths: list[str]) -> dict[str, float]:
    """By pass."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_r1.config.load import load_config
    from megatron_r1.models.core_attention import PlainAttention
    from megatron_r1.models.packed_attention import Heads, PackedAttention
    from megatron_r1.models.specs import transformer_config
    from megatron_r1.parallel.layout import enter_layout

    config = load_config([f"model={model}", *widths, f"parallel.context={dist.get_world_size()}"])
    layout = enter_layout(config.parallel, seed=1)
    dtype = torch.bfloat16 if host.is_cuda else torch.float32
    heads = Heads.of(config.model, config.parallel)
    packed = PackedAttention(
        attend=attend_of(host),
        config=transformer_config(config.model, config.parallel, dtype, config.precision),
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        k_channels=heads.key_width,
        v_channels=heads.value_width,
        softmax_scale=SCALE,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(["tp", "cp"]),
    )
    plain = PlainAttention(softmax_scale=SCALE)
    gaps = {}
    for name, (is_shared, trains) in PASSES.items():
        if is_shared:
            stream = stream_of(LENGTHS, layout.cp, host)
        else:
            own = (1,) if "empty" in name else LENGTHS[layout.cp.rank :]
            stream = stream_of(own, None, host)
        packed.train(trains)
        inputs, grad = drawn(heads, stream, dtype)
        with torch.set_grad_enabled(trains):
            found = [outcomes(attend, inputs, grad, stream) for attend in (packed, plain)]
        gaps[name] = max(
            float((one - other).abs().max() / other.abs().max())
            for one, other in zip(*found, strict=True)
        )
    return gaps


def attend_of(host: Host) -> type:
    if host.is_cuda:
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        return TEDotProductAttention
    from tests.models.packed_stand_in import PackedStandIn

    return PackedStandIn


def stream_of(lengths: tuple[int, ...], cp: Any, host: Host) -> Any:
    """Of ranks that share it each part is filled up at its end by tokens of no sequence."""
    from megatron_r1.models.stream import TokenStream
    from megatron_r1.parallel.context import ContextShard

    context = None
    if cp is not None:
        context = ContextShard.of(lengths, cp, pad_to_multiple=64, device=host.device)
    stream = TokenStream(seq_lengths=lengths, context=context)
    positions = torch.cat([torch.arange(n, device=host.device) for n in lengths])
    stream.positions_T = stream.take(positions, fill=0)
    return stream


def drawn(heads: Any, stream: Any, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
    """(queries, keys and values; gradient of the output), 0 where no sequence is."""
    draw = torch.Generator().manual_seed(0)
    shapes = (
        (heads.num_heads, heads.key_width),
        (heads.num_groups, heads.key_width),
        (heads.num_groups, heads.value_width),
        (heads.num_heads, heads.value_width),
    )
    device = stream.positions_T.device
    *inputs, grad = (
        stream.take(
            torch.randn(sum(stream.seq_lengths), *shape, generator=draw).to(device, dtype), fill=0
        )
        for shape in shapes
    )
    return tuple(inputs), grad


def outcomes(
    attend: torch.nn.Module, inputs: tuple[Tensor, ...], grad: Tensor, stream: Any
) -> list[Tensor]:
    """Output, and gradients where it trains, of the tokens of sequences."""
    trains = torch.is_grad_enabled()
    inputs = tuple(x.clone().requires_grad_(trains) for x in inputs)
    out = attend(*inputs, stream)
    assert out.shape == grad.shape and out.isfinite().all()
    found = [out.detach()]
    if trains:
        out.backward(grad)
        found += [x.grad for x in inputs]
    is_token = torch.ones_like(stream.positions_T, dtype=torch.bool)
    if stream.context is not None:
        is_token = stream.context.own_t >= 0
    return [x[is_token].float() for x in found]
