"""Bytes of buckets: SGLang's own reader takes them, and a giver copies nothing it need not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from megatron_r1.config.load import load_config
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.weights.boxes import shape_of
from megatron_r1.weights.buckets import Entry, Message, OpenBucket, ReusedBuffers, give, messages
from megatron_r1.weights.engine_layout import EngineLayout
from megatron_r1.weights.engine_memory import EngineMemory, ShownNames, shared_buffer
from megatron_r1.weights.engine_requests import Engine
from megatron_r1.weights.names import Form, name_table
from megatron_r1.weights.plan import Quantizer, plan_weights
from megatron_r1.weights.trainer_layout import TrainerLayout
from megatron_r1.weights.transport import SendError


@pytest.fixture(scope="module")
def tensor_bucket() -> ModuleType:
    """SGLang's module, alone: the package around it imports what needs a GPU."""
    sglang = importlib.util.find_spec("sglang")
    if sglang is None:
        pytest.skip("sglang is not installed")
    (root,) = sglang.submodule_search_locations
    file = Path(root) / "srt" / "weight_sync" / "tensor_bucket.py"
    spec = importlib.util.spec_from_file_location("tensor_bucket", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sglang_reads_what_was_put_in(tensor_bucket):
    # Norms in bfloat16, expert biases and scales in float32 and codes of one byte in one bucket.
    model = load_config(["model=tiny_v3"]).model
    plan = plan_weights(TrainerLayout(model, ParallelConfig(), 1), EngineLayout(fp8=True))
    (bucket,) = plan.buckets
    filled, given = OpenBucket(bucket), {}
    generator = torch.Generator().manual_seed(0)
    for transfer in bucket.transfers:
        (piece,) = transfer.pieces
        holding = plan.trainer.holding(transfer.mapping)
        shard = torch.randn(transfer.mapping.megatron_shape, generator=generator)
        tensors = give(transfer, piece, shard.to(transfer.dtype), holding, model)
        filled.put(transfer, piece.box, tensors)
        given |= tensors
    ((message, flat),) = filled
    theirs = tensor_bucket.FlattenedTensorBucket.empty(**message.describe(), device="cpu")
    assert theirs.get_flattened_tensor().shape == flat.shape
    theirs.get_flattened_tensor().copy_(flat)
    read = dict(theirs.reconstruct_tensors())
    assert {tensor.dtype for tensor in read.values()} == {
        torch.bfloat16,
        torch.float32,
        torch.float8_e4m3fn,
    }
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float()), name


@pytest.mark.parametrize("model", ["tiny_v3", "tiny_dense"])
@pytest.mark.parametrize("tensor_ranks", [1, 2])
def test_only_queries_keys_and_values_of_several_groups_are_copied(model, tensor_ranks):
    config = load_config([f"model={model}"]).model
    trainer = TrainerLayout(config, ParallelConfig(tensor=tensor_ranks), tensor_ranks)
    for transfer in plan_weights(trainer, EngineLayout()).transfers:
        assert transfer.quantizer is Quantizer.nobody
        holding = trainer.holding(transfer.mapping)
        rows, *rest = transfer.mapping.megatron_shape
        local = [rows, *rest]
        local[holding.split.dim] //= holding.split.parts
        shard = torch.empty(local)
        for piece in transfer.pieces:
            (values,) = give(transfer, piece, shard, holding, config).values()
            assert values.shape == shape_of(piece.box)
            is_view = values.untyped_storage().data_ptr() == shard.untyped_storage().data_ptr()
            # The model has two key groups, so that two ranks have one each.
            several_groups = transfer.mapping.form is Form.qkv and tensor_ranks == 1
            assert is_view != several_groups, transfer.name


def test_buckets_follow_one_another_in_the_same_memory():
    buffers, cpu = ReusedBuffers(64), torch.device("cpu")
    first, second = buffers.take(48, cpu), buffers.take(64, cpu)
    assert first.numel() == 48 and first.data_ptr() != second.data_ptr()
    buffers.give_back(first)
    again = buffers.take(64, cpu)
    assert again.numel() == 64 and again.data_ptr() == first.data_ptr()
    buffers.give_back(again)
    alone = buffers.take(65, cpu)
    buffers.give_back(alone)
    assert alone.numel() == 65 and not buffers._free  # neither is kept beside it, nor after it


def test_messages_hold_each_byte_of_a_bucket_once():
    config = load_config(["model=tiny_v3"]).model
    plan = plan_weights(
        TrainerLayout(config, ParallelConfig(expert=2), 2), EngineLayout(), bucket_bytes=2**16
    )
    for bucket in plan.buckets:
        (message,) = messages(bucket)
        assert message.num_bytes == bucket.num_bytes
        ends = [0, *(entry.stop for entry in message.entries)]
        assert [entry.start for entry in message.entries] == ends[:-1]
    assert len(name_table(config)) < sum(len(bucket.transfers) for bucket in plan.buckets)


PREEMPTED = """
import psutil, torch
from megatron_r1.weights.engine_memory import shared_buffer

before = shared_buffer(64, torch.device("cpu"))
started = psutil.Process().children(recursive=True)
for child in started:
    child.terminate()
psutil.wait_procs(started, timeout=0.5)
after = shared_buffer(64, torch.device("cpu"))
print(any("shm" in child.name() for child in started), after.numel())
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs POSIX shared memory")
def test_a_sigterm_to_every_process_of_a_job_leaves_shared_memory():
    program = [sys.executable, "-c", PREEMPTED]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "64"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs POSIX shared memory")
def test_no_memory_is_left_for_an_engine_that_is_gone():
    gone = Engine("http://127.0.0.1:9", num_ranks=2, start="")  # nobody listens on "discard"
    shown = ShownNames()
    memory = EngineMemory("weights", [gone], shown)
    flat = shared_buffer(64, torch.device("cpu"))
    message = Message(None, (Entry("bias", torch.float32, ((0, 16),), 0),))
    shown.begin()
    with pytest.raises(SendError, match="bucket 1"):
        memory.send("bucket 1", message, flat, label="1", deadline_s=time.monotonic() + 5)
    memory.leave()
    del flat
    found = partial(Path("/dev/shm").glob, f"torch_{os.getpid()}_*")
    assert len(list(found())) == 1  # both ranks of the engine count as its users
    shown.begin()
    shown.add(taken := shared_buffer(64, torch.device("cpu")))
    shown.end()
    assert len(list(found())) == 1  # of the attempt that succeeded, which an engine may still read
    del taken
    assert not list(found())
