"""Plans carried out on plain tensors, in one process, against the whole Hugging Face model."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from megatron_r1.config.load import load_config
from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    MixtureConfig,
    ModelConfig,
)
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.errors import ConfigError
from megatron_r1.weights.boxes import shape_of, slices, within
from megatron_r1.weights.buckets import OpenBucket, give, sent_as
from megatron_r1.weights.engine_layout import EngineLayout, Receive
from megatron_r1.weights.fp8_files import SCALE_SUFFIX, is_quantized
from megatron_r1.weights.names import Form, NameMapping, name_table, to_megatron
from megatron_r1.weights.plan import Piece, Plan, Quantizer, Transfer, plan_weights
from megatron_r1.weights.plan_report import (
    balance,
    describe,
    gathered_bytes,
    least_traffic,
    peak_bound,
    peak_extra_bytes,
    planned_traffic,
    sent_bytes,
)
from megatron_r1.weights.trainer_layout import TrainerLayout
from r1_kernels.fp8_blocks import quantize
from tests.models.families import FAMILIES, load_family

NUM_DRAWN = 40


@cache
def family(name: str) -> ModelConfig:
    """Five layers, which no pipeline divides, a vocabulary that no tensor ranks do, and widths of
    which two ranks hold whole FP8 blocks and four do not."""
    changes = dict(num_layers=5, vocab_size=509, ffn_hidden_size=256)
    model = load_family(name).model
    if isinstance(model, MixtureConfig):
        changes |= dict(moe_ffn_hidden_size=256)
    if isinstance(model, DeepseekV3Config):
        changes |= dict(num_mtp_layers=1)
    return dataclasses.replace(model, **changes)


@cache
def hf_weights(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        hf: torch.randn(shape, generator=generator).to(mapping.dtype or dtype)
        for mapping in name_table(family(name))
        for hf, shape in zip(mapping.hf, mapping.shapes, strict=True)
    }


def draw(seed: int) -> tuple[str, Plan]:
    """A family with a layout on each side that it allows."""
    rng = random.Random(seed)
    name = rng.choice(sorted(FAMILIES))
    model = family(name)
    mixture = isinstance(model, MixtureConfig)
    while True:
        pipeline = rng.choice([1, 1, 2, 4])
        parallel = ParallelConfig(
            tensor=rng.choice([1, 2, 4]),
            pipeline=pipeline,
            virtual_pipeline=rng.choice([1, 2]) if pipeline == 2 else 1,
            pipeline_layers=[1, 4] if rng.random() < 0.2 and pipeline == 2 else None,
            context=rng.choice([1, 1, 2]),
            expert=rng.choice([1, 2, 4]) if mixture else 1,
            expert_tensor=rng.choice([1, 2, 4]) if mixture else 1,
        )
        if parallel.pipeline_layers and parallel.virtual_pipeline > 1:
            continue
        if isinstance(model, GroupedQueryConfig) and model.num_kv_heads % parallel.tensor:
            continue
        if pipeline > 1 and model.tie_embeddings and model.num_mtp_layers:
            continue
        multiple = max(parallel.tensor * parallel.context, parallel.expert * parallel.expert_tensor)
        trainer = TrainerLayout(model, parallel, pipeline * multiple * rng.choice([1, 2]))
        tensor, receive = rng.choice([1, 2, 4]), rng.choice(list(Receive))
        fp8 = rng.random() < 0.5
        narrow = fp8 and receive is Receive.part  # tiny models have few blocks to share out
        engine = EngineLayout(
            tensor=tensor,
            expert=max(1, tensor // 2) if narrow and mixture else rng.choice([1, tensor]),
            attention_replicas=tensor if narrow else rng.choice([1, tensor]),
            dense_replicated=tensor == 4 if narrow else rng.random() < 0.5,
            num_engines=rng.choice([1, 2]),
            receive=receive,
            fp8=fp8,
        )
        try:
            return name, plan_weights(
                trainer,
                engine,
                dtype=rng.choice([torch.float32, torch.bfloat16]),
                bucket_bytes=rng.choice([2**12, 2**16, 2**20]),
                senders_per_stage=rng.choice([1, 1, None]),
            )
        except ConfigError:
            continue  # ranks that do not divide key heads


def shard(mapping: NameMapping, tensors: list[Tensor], plan: Plan, rank: int) -> Tensor:
    """What a rank has of a parameter: Megatron-Core's rules, written down once more."""
    holding = plan.trainer.holding(mapping)
    parts, number = holding.split.parts, holding.shard_of(rank)
    if mapping.form is Form.rows:
        return torch.cat([tensor.chunk(parts)[number] for tensor in tensors])
    whole = to_megatron(mapping, tensors, plan.trainer.model)
    if mapping.form is Form.vocab:
        padding = -whole.shape[0] % parts
        whole = torch.cat([whole, torch.full((padding, whole.shape[1]), torch.nan).to(whole)])
    return whole.chunk(parts, holding.split.dim)[number].contiguous()


def carry_out(plan: Plan, weights: dict[str, Tensor]) -> Iterator[tuple[int, str, tuple, Tensor]]:
    """Messages as they arrive: engine rank, name, box and tensor."""
    for bucket in plan.buckets:
        filled = OpenBucket(bucket)
        for flat in filled.buffers:
            flat.fill_(255)  # NaN in every type of number
        for transfer in bucket.transfers:
            mapping = transfer.mapping
            tensors = [weights[name] for name in mapping.hf]
            holding = plan.trainer.holding(mapping)
            stage = plan.trainer.stage_of(transfer.sender)
            given = {}
            for piece in transfer.pieces:
                assert piece.rank in holding.ranks(stage, holding.shard_of(piece.rank))
                own = shard(mapping, tensors, plan, piece.rank)
                given[piece] = give(transfer, piece, own, holding, plan.trainer.model)
            if transfer.quantizer is Quantizer.sender:
                values = {piece: found[transfer.name] for piece, found in given.items()}
                filled.put(transfer, transfer.box, merge(transfer, values))
            else:
                for piece, found in given.items():
                    filled.put(transfer, piece.box, found)
        for message, flat in filled:
            for entry in message.entries:
                for rank in message.receivers:
                    yield rank, entry.name, entry.box, entry.view(flat)


def merge(transfer: Transfer, pieces: dict[Piece, Tensor]) -> dict[str, Tensor]:
    """A whole box that the sender quantises, from values of all of its pieces."""
    values = torch.empty(shape_of(transfer.box), dtype=transfer.dtype)
    for piece, tensor in pieces.items():
        values[within(piece.box, transfer.box)] = tensor
    return sent_as(transfer, values, quantized=True)


def as_sent(weights: dict[str, Tensor], fp8: bool) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        if fp8 and is_quantized(name, tuple(tensor.shape)):
            found[name], found[name + SCALE_SUFFIX] = quantize(tensor)
        else:
            found[name] = tensor
    return found


def bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return tensor.view(kinds[tensor.element_size()])


@pytest.mark.parametrize("seed", range(NUM_DRAWN))
def test_engines_get_every_number_once_and_bit_for_bit(seed):
    name, plan = draw(seed)
    weights = hf_weights(name, plan.dtype)
    expected = as_sent(weights, plan.engine.fp8)
    counts = {
        (rank, hf): torch.zeros(tensor.shape, dtype=torch.int8)
        for rank in range(plan.engine.tensor)
        for hf, tensor in expected.items()
    }
    for rank, hf, box, tensor in carry_out(plan, weights):
        index = within(box, tuple((0, size) for size in expected[hf].shape))
        assert tensor.dtype == expected[hf].dtype
        assert torch.equal(bits(tensor), bits(expected[hf])[index]), hf
        counts[rank, hf][index] += 1
    for (rank, hf), count in counts.items():
        wanted = torch.zeros_like(count)
        shape = tuple(weights[hf.removesuffix(SCALE_SUFFIX)].shape)
        wants = plan.engine.wants(hf.removesuffix(SCALE_SUFFIX), shape, plan.trainer.model)
        for box, receivers in zip(slices(wants.split, shape), wants.receivers, strict=True):
            if rank in receivers:
                block = 128 if hf.endswith(SCALE_SUFFIX) else 1
                spans = (slice(start // block, -(-stop // block)) for start, stop in box)
                wanted[tuple(spans)] = 1
        assert torch.equal(count, wanted), (rank, hf)
    assert planned_traffic(plan) == least_traffic(plan)
    assert max(peak_extra_bytes(plan).values()) <= peak_bound(plan)


def test_the_draws_have_every_kind_of_transfer():
    seen = {
        (plan.engine.receive, transfer.quantizer, len(transfer.pieces) > 1, len(transfer.parts) > 1)
        for _, plan in map(draw, range(NUM_DRAWN))
        for transfer in plan.transfers
    }
    # Whole tensors are put together of one piece or more; where the sender quantises, of more.
    whole = {(quantizer, merged, False) for quantizer in Quantizer for merged in (False, True)}
    whole.remove((Quantizer.sender, False, False))
    # Parts come of one shard, or of a tensor that was put together to be quantised.
    part = {
        (quantizer, quantizer is Quantizer.sender, cut)
        for quantizer in Quantizer
        for cut in (False, True)
    }
    assert seen == {(Receive.whole, *kind) for kind in whole} | {
        (Receive.part, *kind) for kind in part
    }


@cache
def of_671_billion(
    engine: EngineLayout, *, senders_per_stage: int | None = 1, **parallel: int
) -> Plan:
    """DeepSeek-V3 with its prediction layer on 512 ranks in 16 stages."""
    overrides = ["model=deepseek_v3", "model.num_mtp_layers=1", "parallel.pipeline=16"]
    overrides += [f"parallel.{name}={degree}" for name, degree in parallel.items()]
    config = load_config([*overrides, "rollout.max_response_tokens=64"])
    trainer = TrainerLayout(config.model, config.parallel, 512)
    return plan_weights(trainer, engine, senders_per_stage=senders_per_stage)


NUM_WEIGHTS = 671_026_404_352 + 11_610_067_968
BIASES = 59 * 256  # of routers, float32


def test_671_billion_weights_are_planned_in_seconds():
    engine = EngineLayout(tensor=16, expert=16, num_engines=4)  # no other test's
    start = time.process_time()
    plan = of_671_billion(engine, expert=32)
    assert time.process_time() - start < 15  # 2 s on an idle core
    traffic = planned_traffic(plan)
    assert traffic == least_traffic(plan)
    assert traffic.sent == 2 * NUM_WEIGHTS + 4 * BIASES
    assert traffic.received == 4 * 16 * traffic.sent
    # A sender holds 1 / 32 of the experts of its stage, and all else of it.
    experts = 59 * 256 * 3 * 7168 * 2048
    assert traffic.gathered == 2 * experts * 31 // 32
    # 14 stages have four layers, and none has more.
    layer = 187_107_328 + 2 * 7168 + 257 * 3 * 7168 * 2048 + 256 * 7168
    assert balance(sent_bytes(plan)).largest == 4 * (2 * layer + 4 * 256)
    # A stage's 32 ranks give equal shares of the experts.
    assert set(gathered_bytes(plan).values()) <= {
        0,
        *(n * 2 * experts // 59 // 32 for n in (1, 3, 4)),
    }
    assert max(peak_extra_bytes(plan).values()) <= peak_bound(plan)


def test_every_rank_a_sender_moves_nothing_inside_the_trainer():
    engine = EngineLayout(tensor=8, expert=8, attention_replicas=8, receive=Receive.part)
    plan = of_671_billion(engine, senders_per_stage=None, expert=32, tensor=8)
    traffic = planned_traffic(plan)
    assert traffic.gathered == 0
    assert traffic == least_traffic(plan)
    # In the middle, all 32 ranks of a stage send within 1% of the mean.
    sent = sent_bytes(plan)
    for stage in range(1, 15):
        assert balance({rank: sent[rank] for rank in plan.senders[stage]}).ratio < 1.01


def test_fp8_halves_the_bytes():
    # One byte for each number of attention and feed-forward, and 4 for a block of 128 x 128.
    fp8, bf16 = (
        planned_traffic(of_671_billion(EngineLayout(tensor=8, fp8=fp8), expert=32))
        for fp8 in (True, False)
    )
    assert 0.500 < fp8.sent / bf16.sent < 0.503
    assert 0.500 < fp8.gathered / bf16.gathered < 0.501


def test_down_projections_that_sglang_fuses_share_a_bucket():
    config = family("deepseek_v3")
    trainer = TrainerLayout(config, ParallelConfig(tensor=2, pipeline=2), 4)
    plan = plan_weights(trainer, EngineLayout(tensor=2), bucket_bytes=1)
    alone = [bucket for bucket in plan.buckets if len(bucket.transfers) == 1]
    pairs = [bucket for bucket in plan.buckets if len(bucket.transfers) > 1]
    assert len(alone) + len(pairs) == len(plan.buckets)
    assert len(pairs) == 6  # five layers and the prediction layer
    for pair in pairs:
        (q, kv) = (transfer.name for transfer in pair.transfers)
        assert q.replace("q_a_proj", "kv_a_proj_with_mqa") == kv


def test_senders_take_turns():
    # The second stage has four layers of five and the head: it sends on when the first is done.
    parallel = ParallelConfig(pipeline=2, pipeline_layers=[1, 4])
    trainer = TrainerLayout(family("llama3"), parallel, 2)
    plan = plan_weights(trainer, EngineLayout(), bucket_bytes=2**17)
    senders = [bucket.sender for bucket in plan.in_turns()]
    first = senders.count(0)
    assert 1 < first < senders.count(1)
    assert senders == [0, 1] * first + [1] * (len(senders) - 2 * first)
    for rank in (0, 1):
        own = [bucket for bucket in plan.buckets if bucket.sender == rank]
        assert [bucket for bucket in plan.in_turns() if bucket.sender == rank] == own


def test_replicas_take_turns_to_give():
    # Four replicas of tensor 2: the sender's partner shard is on four ranks, which give a quarter.
    trainer = TrainerLayout(family("llama3"), ParallelConfig(tensor=2), 8)
    given = gathered_bytes(plan_weights(trainer, EngineLayout()))
    assert [rank for rank, size in given.items() if size] == [1, 3, 5, 7]
    assert max(given.values()) < 1.1 * min(size for size in given.values() if size)


def test_tied_embeddings_come_from_the_stage_with_less_to_send():
    model = family("qwen2.5")
    for layers, stage in (([1, 4], 0), ([4, 1], 1)):
        parallel = ParallelConfig(pipeline=2, pipeline_layers=layers)
        plan = plan_weights(TrainerLayout(model, parallel, 2), EngineLayout())
        senders = [t.sender for t in plan.transfers if t.name == "model.embed_tokens.weight"]
        assert senders == [stage]


def test_what_cannot_be_planned_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="expert = 3 does not divide tensor = 8"):
        EngineLayout(tensor=8, expert=3)
    trainer = TrainerLayout(family("deepseek_v3"), ParallelConfig(), 1)
    with pytest.raises(ConfigError, match="2 senders .* a stage has 1 ranks. Choose 1 to 1"):
        plan_weights(trainer, EngineLayout(), senders_per_stage=2)
    for fp8, problem in ((False, "cannot share"), (True, "would cut FP8 blocks of 128")):
        tensor = 4 if fp8 else 8
        engine = EngineLayout(tensor=tensor, fp8=fp8, receive=Receive.part)
        with pytest.raises(ConfigError, match=f"{problem}.*Give the engine fewer ranks"):
            plan_weights(trainer, engine)


def test_the_summary_says_what_moves():
    text = describe(of_671_billion(EngineLayout(tensor=8), expert=32))
    assert "deepseek_v3: 512 ranks in 16 stages, 16 senders -> 1 engine of 8" in text
    assert "1,365.27    1,365.27" in text


def test_planning_needs_neither_megatron_nor_torch_distributed():
    code = "import sys, megatron_r1.weights.plan_report, megatron_r1.weights.buckets\n"
    code += "assert not [name for name in sys.modules if name.startswith('megatron.')]"
    subprocess.run([sys.executable, "-c", code], check=True)
