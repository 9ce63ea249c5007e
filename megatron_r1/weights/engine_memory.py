"""Buckets in memory that engines of the same machine read: POSIX shared memory, or CUDA IPC.

An engine maps the memory, copies what it keeps, and lets go before it answers. On GPUs, where torch
hands out a CUDA IPC handle in the same way, nobody has run it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_storage_filename, rebuild_tensor

from megatron_r1.signals import children_outlive_sigterm
from megatron_r1.weights.buckets import Message
from megatron_r1.weights.engine_requests import Engine, EngineRequests, collect


def shared_buffer(num_bytes: int, device: torch.device) -> Tensor:
    """uint8 that other processes can be shown."""
    if device.type != "cpu":
        return torch.empty(num_bytes, dtype=torch.uint8, device=device)
    # Torch's keeper of names starts with the first one; without it the next would end the process.
    with children_outlive_sigterm():
        storage = torch.UntypedStorage._new_using_filename_cpu(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class ShownNames:
    """Of memory that engines were shown, and may not have let go of.

    An engine that is shown a bucket counts as its user, and the last user takes its name away. One
    that dies never does, and the bucket would stay in memory until the trainer ends. To take the
    name away under a user's feet ends that user, so it waits until all engines have what was sent
    later.
    """

    def __init__(self) -> None:
        self._now: list[str] = []
        self._earlier: list[str] = []

    def add(self, flat: Tensor) -> None:
        if flat.device.type == "cpu":
            _, name, _ = flat.untyped_storage()._share_filename_cpu_()
            self._now.append(name.decode().lstrip("/"))

    def begin(self) -> None:
        """A publish, or another attempt at one."""
        self._earlier += self._now
        self._now = []

    def end(self) -> None:
        """All engines have taken it."""
        for name in self._earlier:
            Path("/dev/shm", name).unlink(missing_ok=True)
        self._earlier = []


class EngineMemory:
    """A sender's connection with engines on its own machine."""

    def __init__(self, name: str, engines: Sequence[Engine], shown: ShownNames) -> None:
        self._engines = engines
        self._shown = shown
        self._requests = EngineRequests(engines, name)

    def send(
        self, what: str, message: Message, flat: Tensor, *, label: str | None, deadline_s: float
    ) -> None:
        """Have every engine load a bucket; see `EngineGroup.send`.

        Args:
            flat: a `shared_buffer`.
        Raises:
            SendError: an engine did not take it.
        """
        self._shown.add(flat)
        bodies = {
            engine: {
                "serialized_named_tensors": [
                    base64.b64encode(_pickled(message, flat)).decode()
                    for _ in range(engine.num_ranks)
                ],
                "load_format": "flattened_bucket",
                "weight_version": label,
                "flush_cache": label is not None,
            }
            for engine in self._engines
        }
        answers = self._requests.ask("/update_weights_from_tensor", bodies, deadline_s)
        collect(answers, what, deadline_s)

    def leave(self, *, broken: bool = False) -> None:
        """Nothing is left in the engines."""
        self._requests.close()


def _pickled(message: Message, flat: Tensor) -> bytes:
    """What SGLang's MultiprocessingSerializer makes of a bucket. It asks torch to pass on an open
    file, which only children of this process could take over; here it is the memory's name."""
    entries = [
        SimpleNamespace(
            name=entry.name,
            shape=torch.Size(entry.shape),
            dtype=entry.dtype,
            start_idx=entry.start,
            end_idx=entry.stop,
            numel=entry.stop - entry.start,
        )
        for entry in message.entries
    ]
    shown = _Shown(flat) if flat.device.type == "cpu" else flat
    file = io.BytesIO()
    ForkingPickler(file).dump({"flattened_tensor": shown, "metadata": entries})
    return file.getvalue()


class _Shown:
    """Unpickled, once, it is the tensor."""

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat

    def __reduce__(self) -> tuple[Any, ...]:
        place = (0, tuple(self._flat.shape), tuple(self._flat.stride()), False)
        return rebuild_tensor, (torch.Tensor, _ShownStorage(self._flat), place)


class _ShownStorage:
    def __init__(self, flat: Tensor) -> None:
        self._flat = flat

    def __reduce__(self) -> tuple[Any, ...]:
        # As torch reduces a storage that is shared by name: what is on its way counts as a user.
        storage = self._flat.untyped_storage()
        by_name = storage._share_filename_cpu_()
        storage._shared_incref()
        return rebuild_storage_filename, (torch.UntypedStorage, *by_name, self._flat.dtype)
