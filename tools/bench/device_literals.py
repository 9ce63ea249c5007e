"""What it costs that Megatron-Core's literal ``device='cuda'`` means the CPU, on a CPU.

    OMP_NUM_THREADS=1 python tools/bench/device_literals.py [model=tiny_v3] [overrides]

`platform/cpu.py` hands the modules with such literals another name `torch`. The alternative is a
`TorchFunctionMode` over the whole process, which sees every torch call. Forward and backward passes
are timed under one and the other by turns, in one process; printed are the medians of CPU time,
which other load on the machine does not count in, and the median ratio of neighbours.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from contextlib import nullcontext

import torch
from torch.overrides import TorchFunctionMode

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.platform import cpu
from megatron_r1.platform.host import prepare, start_process_group, stop_process_group
from megatron_r1.types import TrainBatch, TrainRow

NUM_TOKENS, NUM_ROUNDS = 64, 20


class CudaMeansCpu(TorchFunctionMode):
    """Rewrites the `device` of every torch call that names one."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = torch.device("cpu")
        return function(*args, **kwargs)


def main(overrides: list[str]) -> None:
    host = prepare()
    assert not host.is_cuda, "nothing is replaced beside a GPU: there is nothing to measure"
    start_process_group(host, timeout_minutes=5)
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.trainers.megatron_step import MegatronStep

    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=64", *overrides])
    layout = enter_layout(config.parallel, seed=1)
    policy = Policy(config.model, layout, config.precision, host, seed=1)
    step = MegatronStep(policy, config.optimizer)
    modules = [importlib.import_module(name) for name in cpu._CUDA_LITERALS]
    ours = modules[0].torch

    def timed_s(num_sequences: int, *, under_mode: bool) -> float:
        mask_L = torch.arange(NUM_TOKENS) > 0
        tokens_NL = torch.randint(0, config.model.vocab_size, (num_sequences, NUM_TOKENS))
        batch = TrainBatch(tuple(TrainRow(tokens_L, mask_L, weight=1e-3) for tokens_L in tokens_NL))
        for module in modules:
            module.torch = torch if under_mode else ours
        with CudaMeansCpu() if under_mode else nullcontext():
            started_s = time.process_time()
            step.accumulate_gradients(
                batch, step.on_logprobs(sft_loss), num_sequences=num_sequences
            )
            return time.process_time() - started_s

    for num_sequences in (1, 8, 64):
        timed_s(num_sequences, under_mode=True)
        names_s, modes_s = [], []
        for _ in range(NUM_ROUNDS):
            names_s.append(timed_s(num_sequences, under_mode=False))
            modes_s.append(timed_s(num_sequences, under_mode=True))
        ratio = statistics.median(m / n for m, n in zip(modes_s, names_s, strict=True))
        print(
            f"{num_sequences * NUM_TOKENS:5d} tokens   "
            f"names {1000 * statistics.median(names_s):6.1f} ms   "
            f"mode {1000 * statistics.median(modes_s):6.1f} ms   ratio {ratio:.3f}"
        )
    stop_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
