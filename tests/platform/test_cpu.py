"""What Megatron-Core takes for granted of CUDA, where there is none; and who does not notice."""

from __future__ import annotations

import importlib

import pytest
import torch

from megatron_r1.platform.host import prepare

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is replaced beside a GPU"),
]

PLAIN_ZEROS = torch.zeros
"""Taken before anything is replaced, or after: it is the same."""


@pytest.fixture(scope="module", autouse=True)
def prepared():
    return prepare()


# Modules of a training step: the schedule, the gradient's norm, the experts' permutation.
@pytest.mark.parametrize(
    "name",
    [
        "megatron.core.pipeline_parallel.schedules",
        "megatron.core.optimizer.clip_grads",
        "megatron.core.transformer.moe.moe_utils",
    ],
)
def test_literal_devices_of_megatron_mean_the_cpu(name):
    theirs = importlib.import_module(name).torch
    for made in (
        theirs.zeros(2, device="cuda"),
        theirs.tensor([1.0], device="cuda:0"),
        theirs.empty(3, device=torch.device("cuda")),
        theirs.arange(4, device=theirs.cuda.current_device()),
    ):
        assert made.device.type == "cpu"
    # Everything else is torch's own.
    assert theirs.Tensor is torch.Tensor and theirs.distributed is torch.distributed
    assert theirs.matmul is torch.matmul


def test_torch_itself_is_untouched():
    assert torch.zeros is PLAIN_ZEROS and type(torch.zeros).__name__ == "builtin_function_or_method"
    with pytest.raises(
        (RuntimeError, AssertionError)
    ):  # there is no such device, and torch says so
        torch.zeros(2, device="cuda")
    from megatron_r1.algos import kl

    assert kl.torch is torch


def test_a_cpu_is_the_one_device():
    assert torch.cuda.current_device() == torch.device("cpu")
    assert torch.cuda.device_count() == 1
    weight = torch.nn.Linear(2, 2)
    assert weight.cuda() is weight and torch.ones(1).cuda().device.type == "cpu"
    # Host code still learns that there is no GPU.
    assert not torch.cuda.is_available()


def test_streams_and_events_are_in_order():
    with torch.cuda.stream(torch.cuda.Stream()):
        event = torch.cuda.current_stream().record_event()
    assert event.query()
    event.synchronize()
    torch.cuda.synchronize()


def test_prepare_is_done_once(prepared):
    assert prepare() is prepared
    assert (prepared.device.type, prepared.backend, prepared.is_cuda) == ("cpu", "gloo", False)
