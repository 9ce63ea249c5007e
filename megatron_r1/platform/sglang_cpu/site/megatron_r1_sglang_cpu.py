"""A plugin of SGLang: what its path in plain torch lacks, each by SGLang's own means where there
are any. SGLang calls `register` in every process of a server, before a model is built.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F


def register() -> None:
    """Put everything in place, or end the server: SGLang would only log an error and go on."""
    try:
        latent_attention_reads_the_latent_cache()
        host_buffers_are_plain_memory()
        requests_may_have_seeds()
        experts_of_other_ranks_are_skipped()
        data_parallel_attention_has_a_padding_length()
    except Exception as error:
        raise SystemExit(f"megatron_r1: SGLang's CPU plugin failed: {error!r}") from error
    print("megatron_r1: SGLang's CPU plugin is in place", file=sys.stderr, flush=True)


def latent_attention_reads_the_latent_cache() -> None:
    """Multi-head latent attention is always computed in its absorbed form.

    The torch_native backend takes keys and values from the cache, which holds latents; SGLang would
    give it expanded heads in a prefill without a prefix, of other sizes or, worse, of the same.
    """
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler

    handler.AttentionBackendRegistry.register(
        "torch_native", lambda attention, batch: handler._dispatch_mla_subtype(attention, batch)
    )


def host_buffers_are_plain_memory() -> None:
    """Routed experts are collected in host memory, which there is no CUDA to pin for."""
    from sglang.srt.mem_cache.pool_host import common

    def allocate(dims: Any, dtype: torch.dtype, device: Any, **settings: Any) -> torch.Tensor:
        return torch.empty(dims, dtype=dtype, device=device)

    common.ALLOC_MEMORY_FUNCS["cpu"] = allocate


def requests_may_have_seeds() -> None:
    """Deterministic inference, which switches `sampling_seed` on, accepts this backend.

    Its Triton kernels stay away: sums may be taken in another order when the batch is another.
    """
    import sglang.srt.batch_invariant_ops as batch_invariant_ops
    from sglang.srt.arg_groups import choices

    choices.add_deterministic_attention_backend_choices(["torch_native"])
    choices.add_radix_supported_deterministic_attention_backend_choices(["torch_native"])
    batch_invariant_ops.enable_batch_invariant_mode = lambda *arguments, **settings: None


def experts_of_other_ranks_are_skipped() -> None:
    """Under expert parallelism a token's experts on other ranks come as id -1."""
    from sglang.srt.layers.moe import fused_moe_native

    every_expert_is_here = fused_moe_native.moe_forward_native

    def moe_forward(layer: Any, hidden_TD: torch.Tensor, topk_output: Any, config: Any) -> Any:
        weights_TK, ids_TK = topk_output.topk_weights, topk_output.topk_ids
        if int(ids_TK.min()) >= 0:
            return every_expert_is_here(layer, hidden_TD, topk_output, config)
        assert config.activation == "silu" and config.gemm1_alpha is None, config
        output_TD = torch.zeros_like(hidden_TD, dtype=weights_TK.dtype)
        for expert, (gate_up, down) in enumerate(
            zip(layer.w13_weight, layer.w2_weight, strict=True)
        ):
            tokens, slots = (ids_TK == expert).nonzero(as_tuple=True)
            gate, up = F.linear(hidden_TD[tokens], gate_up).chunk(2, dim=-1)
            result = F.linear(F.silu(gate) * up, down).to(weights_TK.dtype)
            output_TD.index_add_(0, tokens, result * weights_TK[tokens, slots, None])
        return output_TD.to(hidden_TD.dtype)

    fused_moe_native.moe_forward_native = moe_forward


def data_parallel_attention_has_a_padding_length() -> None:
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda self: 1
