"""Named weight sets in host memory; one at a time stands in for the policy's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_r1.models.policy import Policy


class WeightBank:
    """Weight sets beside a policy's own, such as ``reference``.

    The paper's framework off-loads models between phases in the same way (supplement B.1). On a CPU
    a set is put in place by exchanging pointers; on a GPU it is copied to the device for as long as
    it is used.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._sets: dict[str, dict[str, Tensor]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    @torch.no_grad()
    def store(self, name: str) -> None:
        """Copy the policy's present weights into the set `name`."""
        self._sets[name] = {
            key: tensor.detach().to("cpu", copy=True) for key, tensor in self._tensors()
        }

    def give_up_own(self) -> None:
        """Free the policy's own weights: from now on it is a shell that a set is put into."""
        for _, tensor in self._tensors():
            tensor.data = tensor.data.new_empty(0)

    @contextmanager
    def use(self, name: str) -> Iterator[Policy]:
        """Put the set in place of the policy's weights, for forward passes alone."""
        stored = self._sets[name]
        own = {key: tensor.data for key, tensor in self._tensors()}
        try:
            for key, tensor in self._tensors():
                tensor.data = stored[key].to(tensor.device, non_blocking=True)
            yield self._policy
        finally:
            for key, tensor in self._tensors():
                tensor.data = own[key]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters, and the buffers that change what the model computes (the expert bias)."""
        yield from self._policy.named_parameters()
        for key, tensor in self._policy.named_buffers():
            if key.endswith("expert_bias"):
                yield key, tensor
