"""Memory that log-probabilities of tokens need, with all logits and without.

    python tools/bench/logprob_memory.py                  an exact count at the paper's sizes
    python tools/bench/logprob_memory.py --measure        and the process's own peak, at --tokens
    python tools/bench/logprob_memory.py --measure --ways fused        where plain does not fit

Log-probability memory is what a forward and a backward pass hold at their peak beyond hidden
states, head and the gradients of both. (With all logits, the peak comes before those gradients are
there; they are taken off all the same.) The count adds up the bytes of all live tensors while the
passes run on fake tensors: shapes without memory, so that any size fits. The measurement runs the
same passes for real, each way in a process of its own, and reads how far its resident memory rises
above what it was with the inputs in it, after the same passes over two tokens.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megatron_r1.algos.logprobs import target_logprobs
from r1_kernels.token_logprobs import token_logprobs

MIB = 2**20
WAYS = ("plain", "fused")


def passes(
    way: str, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, chunk_bytes: int | None
) -> None:
    """Forward and backward, as a training step calls them; None: with its size of chunks."""
    if way == "plain":
        logprobs_T, _ = target_logprobs(hidden_TD @ weight_VD.T, targets_T)
    else:
        logprobs_T, _ = token_logprobs(hidden_TD, weight_VD, targets_T, chunk_bytes=chunk_bytes)
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


def counted_bytes(
    way: str,
    num_tokens: int,
    width: int,
    vocab: int,
    dtype: torch.dtype,
    chunk_bytes: int | None = None,
) -> int:
    """At the peak, beyond inputs and their gradients."""
    with FakeTensorMode(), LiveBytes() as live:
        passes(way, *inputs(num_tokens, width, vocab, dtype), chunk_bytes)
    return live.peak - own_bytes(num_tokens, width, vocab, dtype)


def own_bytes(num_tokens: int, width: int, vocab: int, dtype: torch.dtype) -> int:
    """Of the inputs and their gradients."""
    return 2 * (num_tokens + vocab) * width * dtype.itemsize + 8 * num_tokens


def measured_bytes(
    way: str,
    num_tokens: int,
    width: int,
    vocab: int,
    dtype: torch.dtype,
    chunk_bytes: int | None = None,
) -> int:
    """The same of this process, which should have done nothing else before; Linux alone."""
    passes(way, *inputs(2, width, 300, dtype), chunk_bytes)  # what libraries keep for themselves
    given = inputs(num_tokens, width, vocab, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what there is now
    before = resident_bytes("VmRSS")
    passes(way, *given, chunk_bytes)
    gradients = (num_tokens + vocab) * width * dtype.itemsize
    return resident_bytes("VmHWM") - before - gradients


def resident_bytes(what: str) -> int:
    """A line of the kernel's account of this process: VmRSS, or VmHWM, the most it ever was."""
    (line,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def measured_apart(way: str, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--run", way, "--dtype", arguments.dtype]
    for name in ("tokens", "width", "vocab"):
        command += [f"--{name}", str(getattr(arguments, name))]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--vocab", type=int, default=129280)
    parser.add_argument("--width", type=int, default=7168)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    sizes = (arguments.tokens, arguments.width, arguments.vocab, dtype)
    if arguments.run:
        print(measured_bytes(arguments.run, *sizes))
        return
    print(f"T {sizes[0]}, D {sizes[1]}, V {sizes[2]}, {arguments.dtype}")
    report("counted", {way: counted_bytes(way, *sizes) for way in arguments.ways})
    if arguments.measure:
        report("measured", {way: measured_apart(way, arguments) for way in arguments.ways})


def report(kind: str, found: dict[str, int]) -> None:
    said = [f"{way} {num_bytes / MIB:,.0f} MiB" for way, num_bytes in found.items()]
    if len(found) == len(WAYS):
        said.append(f"1/{found['plain'] / found['fused']:.1f}")
    print(f"{kind}: {', '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
