"""Memory that log-probabilities of tokens need, with all logits and without.

    python tools/bench/logprob_memory.py                  an exact count at the paper's sizes
    python tools/bench/logprob_memory.py --measure        and the process's own peak, at --tokens

Log-probability memory is what a forward and a backward pass hold at their peak beyond hidden
states, head and the gradients of both. (With all logits, the peak comes before those gradients are
there; they are taken off all the same.) The count adds up the bytes of all live tensors while the
passes run on fake tensors: shapes without memory, so that any size fits. The measurement runs the
same passes for real, each in a process of its own, and reads its peak resident memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megatron_r1.algos.logprobs import target_logprobs
from r1_kernels.token_logprobs import token_logprobs

MIB = 2**20
WAYS = ("plain", "fused")


def passes(way: str, num_tokens: int, width: int, vocab: int, dtype: torch.dtype) -> None:
    """Forward and backward, as a training step calls them."""
    hidden_TD, weight_VD, targets_T = inputs(num_tokens, width, vocab, dtype)
    if way == "plain":
        logprobs_T, _ = target_logprobs(hidden_TD @ weight_VD.T, targets_T)
    else:
        logprobs_T, _ = token_logprobs(hidden_TD, weight_VD, targets_T)
    logprobs_T.sum().backward()


def inputs(num_tokens: int, width: int, vocab: int, dtype: torch.dtype):
    hidden_TD = torch.randn(num_tokens, width, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(vocab, width, dtype=dtype).mul_(0.02).requires_grad_()
    return hidden_TD, weight_VD, torch.randint(0, vocab, (num_tokens,))


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        num_bytes = storage.nbytes()
        self._known.add(key)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, num_bytes)

    def _drop(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


def counted_bytes(way: str, num_tokens: int, width: int, vocab: int, dtype: torch.dtype) -> int:
    """At the peak, beyond inputs and their gradients."""
    with FakeTensorMode(), LiveBytes() as live:
        passes(way, num_tokens, width, vocab, dtype)
    return live.peak - own_bytes(num_tokens, width, vocab, dtype)


def own_bytes(num_tokens: int, width: int, vocab: int, dtype: torch.dtype) -> int:
    return 2 * (num_tokens + vocab) * width * dtype.itemsize + 8 * num_tokens


def measured_bytes(way: str, arguments: argparse.Namespace) -> int:
    """The same from the peak of a process, less that of one that makes the inputs alone."""

    def peak(what: str) -> int:
        command = [sys.executable, __file__, "--run", what, "--dtype", arguments.dtype]
        for name in ("tokens", "width", "vocab"):
            command += [f"--{name}", str(getattr(arguments, name))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    return peak(way) - peak("inputs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--vocab", type=int, default=129280)
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--run", choices=[*WAYS, "inputs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    sizes = (arguments.tokens, arguments.width, arguments.vocab, dtype)
    if arguments.run == "inputs":
        for tensor in inputs(*sizes)[:2]:
            tensor.grad = torch.ones_like(tensor)
    elif arguments.run:
        passes(arguments.run, *sizes)
    if arguments.run:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    print(f"T {sizes[0]}, D {sizes[1]}, V {sizes[2]}, {arguments.dtype}")
    counted = {way: counted_bytes(way, *sizes) for way in WAYS}
    report("counted", counted)
    if arguments.measure:
        report("measured", {way: measured_bytes(way, arguments) for way in WAYS})


def report(kind: str, found: dict[str, int]) -> None:
    plain, fused = (found[way] for way in WAYS)
    print(
        f"{kind}: plain {plain / MIB:,.0f} MiB, fused {fused / MIB:,.0f} MiB: 1/{plain / fused:.1f}"
    )


if __name__ == "__main__":
    main()
