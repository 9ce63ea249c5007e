"""What Megatron-Core 0.16 takes for granted of CUDA, given to it on a machine without a GPU.

Each replacement stands with its reason. Three kinds: attributes of `torch.cuda` and of tensors that
raise without a GPU; the literal ``device='cuda'`` in some modules of Megatron-Core; and names that
Megatron-Core leaves unbound, or bound to a mock, without Transformer Engine. The literals are
mended by handing just those modules another name `torch` (`_TorchOnCpu`), so that no torch call of
a training step, in the model or outside it, is slower for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d

_CPU = torch.device("cpu")


def make_megatron_run_without_cuda() -> None:
    """Replace all there is to replace. Imports the modules of Megatron-Core that need it."""
    _replace_torch_cuda()
    _replace_tensor_methods()
    _mend_tensor_parallel_random()
    _mend_multi_latent_attention()
    _mend_expert_routing()
    _mend_uneven_collectives()
    _mend_adam_resume()
    _mend_device_literals()
    _share_one_gloo_device()


class _Stream:
    """A CPU has one stream, in order: waiting for another one is done before it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def wait_stream(self, other: _Stream) -> None: ...

    def wait_event(self, event: _Event) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def wait(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 0.0


@contextlib.contextmanager
def _in_stream(stream: object) -> Iterator[None]:
    yield


def _nothing(name: str) -> Callable[..., None]:
    """A function of its own for each name: `torch._dynamo` refuses one object under two names."""

    def do_nothing(*args: Any, **kwargs: Any) -> None: ...

    do_nothing.__name__ = name
    return do_nothing


def _replace_torch_cuda() -> None:
    """`torch.cuda.X` raises without a GPU; the program means the one device that there is."""
    cuda = torch.cuda
    cuda.current_device = lambda: _CPU  # used as `device=torch.cuda.current_device()`
    cuda.device_count = lambda: 1  # divides ranks into nodes
    cuda.Stream = _Stream
    cuda.Event = _Event
    cuda.current_stream = lambda *args: _Stream()
    cuda.default_stream = lambda *args: _Stream()
    cuda.stream = _in_stream
    cuda.memory_allocated = lambda *args: 0
    cuda.max_memory_allocated = lambda *args: 0
    for name in ("synchronize", "set_device", "empty_cache"):
        setattr(cuda, name, _nothing(name))
    # The random state of "the device" is the CPU's.
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    cuda.initial_seed = lambda: torch.initial_seed()
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda._lazy_call = lambda call, **kwargs: call()


def _replace_tensor_methods() -> None:
    # `tensor.cuda()` and `module.cuda()` move to the device: everything is there already.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self

    # The distributed optimizer and clip_grads compare `tensor.type()` with
    # 'torch.cuda.FloatTensor'.
    plain_type = torch.Tensor.type

    def type_as_on_cuda(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = plain_type(self, *args, **kwargs)
        if args or kwargs:
            return name
        return name.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_as_on_cuda


def _mend_tensor_parallel_random() -> None:
    # They reach into CUDA's default generators to fork random state per parallel region.
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(
        state
    )
    random._get_cuda_rng_state = lambda device="cpu", clone=False, graph_safe=False: (
        torch.get_rng_state()
    )


def _mend_multi_latent_attention() -> None:
    # Without Transformer Engine these are mocks, and `isinstance(x, mock)` raises.
    module = importlib.import_module("megatron.core.transformer.multi_latent_attention")
    for name in ("TELinear", "TEColumnParallelLinear"):
        if not isinstance(getattr(module, name, None), type):
            setattr(module, name, type(name, (), {}))


def _mend_expert_routing() -> None:
    moe_utils = importlib.import_module("megatron.core.transformer.moe.moe_utils")
    dispatcher = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    # The router asks whether it is None, and without Transformer Engine the name is unbound.
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None

    # The original leaves a tensor that is on the CPU a tensor, even where numpy was asked for; the
    # all-to-all then receives tensors for its split sizes.
    def to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor

    moe_utils.maybe_move_tensor_to_cpu = to_cpu
    dispatcher.maybe_move_tensor_to_cpu = to_cpu


def _mend_uneven_collectives() -> None:
    """Expert tensor ranks exchange different numbers of rows, and gloo wants them equal."""
    mappings = importlib.import_module("megatron.core.tensor_parallel.mappings")
    even_gather = mappings._gather_along_first_dim
    even_reduce_scatter = mappings._reduce_scatter_along_first_dim

    def gather(
        x: torch.Tensor, group: Any = None, output_split_sizes: Any = None, *args: Any
    ) -> torch.Tensor:
        if output_split_sizes is None:
            return even_gather(x, group, None, *args)
        sizes = [int(size) for size in output_split_sizes]
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter(
        x: torch.Tensor, group: Any = None, input_split_sizes: Any = None, *args: Any
    ) -> torch.Tensor:
        if input_split_sizes is None:
            return even_reduce_scatter(x, group, None, *args)
        total = x.clone()
        torch.distributed.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].contiguous()

    mappings._gather_along_first_dim = gather
    mappings._reduce_scatter_along_first_dim = reduce_scatter


def _mend_adam_resume() -> None:
    """torch's AdamW, used where neither TE's nor Apex's is there, keeps its step count per
    parameter.

    Loading a checkpoint sets it and then looks for it once more among the saved tensors, where
    Megatron does not store it.
    """
    module = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    set_states = module.DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states_but_step(self: Any, model_param: Any, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        if "step" in state:
            tensors = {**tensors, "step": state["step"]}
        set_states(self, model_param, tensors)

    module.DistributedOptimizer._set_main_param_and_optimizer_states = set_states_but_step


_CUDA_LITERALS = (
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.distributed.finalize_model_grads",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.models.common.embeddings.rope_utils",
    "megatron.core.transformer.moe.moe_utils",
    "megatron.core.transformer.moe.token_dispatcher",
    "megatron.core.utils",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn")


def _mend_device_literals() -> None:
    """``torch.zeros(..., device='cuda')`` in these modules makes its tensor on the CPU; and none is
    pinned, for which there is no allocator without a GPU."""
    on_cpu = _TorchOnCpu()
    for name in _CUDA_LITERALS:
        importlib.import_module(name).torch = on_cpu


class _TorchOnCpu(types.ModuleType):
    """torch, except that its factories read ``device='cuda'`` as the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        setattr(self, name, value)  # found at once the next time
        return value


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


def _share_one_gloo_device() -> None:
    """Let all process groups of this process use one device of gloo.

    Each device has a thread that wakes up a hundred times a second, and each group would have a
    device: twenty groups a rank, all of them awake on the cores that compute.
    """
    shared = []

    class SharedDeviceGloo(distributed_c10d.ProcessGroupGloo):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            if not shared:
                # Torch reads the variable where it makes devices itself.
                names = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")
                shared.extend(
                    self.create_device(interface=name) if name else self.create_default_device()
                    for name in names
                )
            options = self._Options()
            options._devices = shared
            options._timeout = timeout
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = SharedDeviceGloo
