"""Save and load a run's state under `<run>/checkpoints/`.

    checkpoints/step_000123/   a checkpoint; `record.py` says what is in it
    checkpoints/latest         name of the newest whole one
    checkpoints/fp8_scales.safetensors      of the model that the run began with, if it was in FP8

A checkpoint is written under another name, flushed to the disk and renamed; `latest` follows by a
rename of its own. Killed at any moment, a run finds its last whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megatron_r1.checkpoint.fp8_scales import carry_scales
from megatron_r1.checkpoint.record import (
    CRITIC,
    FP8_SCALES,
    POLICY,
    REFERENCE,
    TOKENIZER,
    check_same_model,
    copy_tokenizer,
    flush,
    forget_origin,
    latest_checkpoint,
    publish,
    read_state,
    saved_head,
    write_record,
)
from megatron_r1.checkpoint.typed_fields import from_json
from megatron_r1.config.model import ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.platform.write_results import fresh_results
from megatron_r1.signals import children_end_with_us, children_outlive_sigterm
from megatron_r1.telemetry.files import replace_file

_OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}


@dataclass(frozen=True)
class LoopState:
    """Counters of a loop: all that resuming needs, since all randomness is keyed by them."""

    step: int = 0
    """Policy updates made."""
    prompts_drawn: int = 0
    kl_coefficient: float | None = None
    """Of an objective that adapts one; None before its first phase, and with the others."""
    kl_ref: float | None = None
    """Nats per token to the reference, as the last phase's last update measured it."""
    watched: Sequence[Mapping[str, float]] = ()
    """What the reward-hacking monitor remembers."""


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    partial: Path
    final: Path
    model: ModelConfig
    record: Mapping[str, Any]


class Trained(Protocol):
    """A model with its optimizer."""

    policy: Policy
    optimizer: MegatronOptimizer


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        keep: int,
        tokenizer_dir: Path | None,
        in_background: bool = False,
    ) -> None:
        self._dir = run_dir / "checkpoints"
        self._keep = keep
        self._tokenizer_dir = tokenizer_dir
        self._in_background = in_background
        self._writes = AsyncCallsQueue()
        self._pending: _Pending | None = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None when there is none."""
        return latest_checkpoint(self._dir)

    def has(self, step: int) -> bool:
        """Whether the newest whole checkpoint is that of `step`."""
        latest = self.latest()
        return latest is not None and latest.name == _name_of(step)

    def keep_scales(self, model_dir: Path) -> None:
        """Let every checkpoint carry the FP8 scales, if any, of the model that the run begins with:
        a run, a checkpoint or a Hugging Face model. Every rank calls it.

        Raises:
            CheckpointError: there is no such model, or the disk is full.
        """

        def keep() -> None:
            self._dir.mkdir(parents=True, exist_ok=True)
            carry_scales(model_dir, self._dir)

        on_main_rank(keep)

    def save(
        self,
        state: LoopState,
        policy: Policy,
        optimizer: MegatronOptimizer,
        bank: WeightBank | None = None,
        critic: Trained | None = None,
    ) -> Path:
        """Write a checkpoint; every rank calls it. Earlier ones stay until it is whole.

        In the background, weights and optimizer state are copied and a process of its own writes
        them; `poll` makes them a checkpoint. The reference, which changes rarely, is written before
        this returns.

        Returns:
            Where it is, or will be.
        Raises:
            CheckpointError: the disk is full or failed, now or for the checkpoint before; the whole
                ones are untouched.
        """
        self.poll(wait=True)
        with_reference = bank is not None and REFERENCE in bank
        parts = [POLICY]
        parts += [REFERENCE] if with_reference else []
        parts += [CRITIC] if critic is not None else []
        with (
            self._failures_named(state.step),
            children_outlive_sigterm(),
            children_end_with_us(),
        ):
            partial = on_main_rank(lambda: self._begin(state.step, parts))
            if with_reference:
                with bank.use(REFERENCE):
                    weights = {"model": policy.sharded_state_dict()}
                    fresh_results()
                    dist_checkpointing.save(weights, str(partial / REFERENCE))
            self._write(_state_dict(policy, optimizer), partial / POLICY)
            if critic is not None:
                self._write(_state_dict(critic.policy, critic.optimizer), partial / CRITIC)
        self._pending = _Pending(
            state.step,
            partial,
            final=self._dir / _name_of(state.step),
            model=policy.config,
            record={
                "loop": dataclasses.asdict(state),
                "layout": policy.layout.describe(),
                "torch": torch.__version__,
                "head": policy.head.value,
            },
        )
        if not self._in_background:
            self.poll(wait=True)
        return self._dir / _name_of(state.step)

    def _begin(self, step: int, parts: Sequence[str]) -> Path:
        """An empty directory for the parts of a checkpoint. On the main rank."""
        for left_over in self._dir.glob(".partial_*"):
            shutil.rmtree(left_over, ignore_errors=True)
        # A killed run's writer may still be at work: no two have a directory in common.
        partial = self._dir / f".partial_{_name_of(step)}_{os.getpid()}"
        for part in parts:
            (partial / part).mkdir(parents=True)
        return partial

    def _write(self, tensors: dict[str, Any], directory: Path) -> None:
        """Write one part, or begin to in the background."""
        fresh_results()
        write = dist_checkpointing.save(tensors, str(directory), async_sharded_save=True)
        if self._in_background:
            self._writes.schedule_async_request(write)
        else:
            write.execute_sync()

    def _finish(self, pending: _Pending) -> None:
        """Make what was written a checkpoint, and the newest one. On the main rank."""
        if self._tokenizer_dir is not None:
            copy_tokenizer(self._tokenizer_dir, pending.partial / TOKENIZER)
        if (self._dir / FP8_SCALES).is_file():
            shutil.copyfile(self._dir / FP8_SCALES, pending.partial / FP8_SCALES)
        forget_origin(pending.partial)
        write_record(pending.partial, pending.model, **pending.record)
        publish(pending.partial, pending.final)
        with replace_file(self._dir / "latest") as pointer:
            pointer.write_text(pending.final.name + "\n")
            flush(pointer)
        flush(self._dir)
        self._prune(newest=pending.final)

    def poll(self, *, wait: bool = False) -> None:
        """Make what was written in the background a checkpoint, if it is there; every rank calls
        this after each step, and with `wait` at the end.

        Raises:
            CheckpointError: writing it failed; the checkpoints before it are untouched.
        """
        if self._pending is None:
            return
        pending = self._pending
        with self._failures_named(pending.step):
            self._writes.maybe_finalize_async_calls(blocking=wait)
            if self._writes.get_num_unfinalized_calls():
                return
            on_main_rank(lambda: self._finish(pending))
        self._pending = None

    @contextmanager
    def _failures_named(self, step: int) -> Iterator[None]:
        """A failed write as one message, without what it left behind."""
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            if not _is_failed_write(error):
                raise
            self._pending = None
            for partial in self._dir.glob(".partial_*"):
                shutil.rmtree(partial, ignore_errors=True)
            last = self.latest()
            kept = f"{last} is whole. " if last is not None else ""
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self._dir}: "
                f"{_root_cause(error)}. {kept}Make room and start the run again"
            ) from error

    def load(
        self,
        path: Path,
        policy: Policy,
        optimizer: MegatronOptimizer,
        bank: WeightBank | None = None,
        critic: Trained | None = None,
    ) -> LoopState:
        """Put a checkpoint into the policy, the optimizer, the bank and the critic; the layout may
        differ.

        In the layout that saved it the run goes on bit for bit.
        """
        record = read_state(path)
        check_same_model(path, record, policy.config, policy.head)
        state = _saved_state(record["loop"], f"{path / 'state.json'}: loop")
        if bank is not None and (path / REFERENCE).is_dir():
            _load_weights(policy, path / REFERENCE)
            bank.store(REFERENCE)
        _load_trained(policy, optimizer, path / POLICY)
        if critic is not None:
            if not (path / CRITIC).is_dir():
                raise CheckpointError(
                    f"checkpoint {path} holds no critic, and algo=ppo goes on with one. Start "
                    "another run from it: run.name=NEW model.init_from=" + str(path)
                )
            _load_trained(critic.policy, critic.optimizer, path / CRITIC)
        return state

    def _prune(self, *, newest: Path) -> None:
        whole = sorted(p for p in self._dir.glob("step_*") if p.is_dir() and p != newest)
        for old in whole[: max(0, len(whole) - (self._keep - 1))]:
            shutil.rmtree(old, ignore_errors=True)


def _saved_state(loop: dict[str, Any], where: str) -> LoopState:
    lost = [name for name in ("step", "prompts_drawn") if name not in loop]
    if lost:
        raise CheckpointError(f"{where} is damaged: it lacks {', '.join(lost)}")
    return from_json(LoopState, loop, where)


def _name_of(step: int) -> str:
    return f"step_{step:06d}"


def load_weights(policy: Policy, path: Path) -> int:
    """Weights alone, e.g. for `model.init_from`; a language model's leave a scalar head alone.

    Returns the longest sequence that the model was made for, in tokens.
    """
    record = read_state(path)
    check_same_model(path, record, policy.config, policy.head)
    _load_weights(policy, path / POLICY, without_head=policy.head is not saved_head(record))
    return record["model"]["max_positions"]


def _state_dict(
    policy: Policy, optimizer: MegatronOptimizer, *, is_loading: bool = False
) -> dict[str, Any]:
    _complete_adam_state(optimizer)
    model = policy.sharded_state_dict()
    return {
        "model": model,
        "optimizer": optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=_OPTIMIZER_METADATA
        ),
    }


def _complete_adam_state(optimizer: MegatronOptimizer) -> None:
    """Give torch's Adam the state that Megatron expects in it when it describes a checkpoint.

    Before the first step there are no moments to take shapes from; and an optimizer without
    parameters on this rank, such as the experts' on a pipeline stage of dense layers, has no step
    count to save. The fused Adams of Transformer Engine and Apex are known to Megatron by
    themselves.
    """
    inners = [
        part.optimizer
        for part in optimizer.chained_optimizers
        if type(part.optimizer) is torch.optim.AdamW
    ]
    step_count = torch.zeros(())
    for inner in inners:
        for parameter in (p for group in inner.param_groups for p in group["params"]):
            state = inner.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            step_count = state["step"]
    for inner in inners:
        if not any(group["params"] for group in inner.param_groups):
            inner.state["no parameters on this rank"] = {"step": step_count.clone()}


def _separate_step_counts(optimizer: MegatronOptimizer) -> None:
    """Megatron gives all parameters one step count of torch's Adam: each would advance it."""
    for part in optimizer.chained_optimizers:
        for state in part.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].clone()


def _load_trained(policy: Policy, optimizer: MegatronOptimizer, path: Path) -> None:
    loaded = _read(_state_dict(policy, optimizer, is_loading=True), path)
    policy.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    _separate_step_counts(optimizer)


def _load_weights(policy: Policy, path: Path, *, without_head: bool = False) -> None:
    target = {"model": policy.sharded_state_dict(without_head=without_head)}
    policy.load_state_dict(_read(target, path)["model"])


def _read(target: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fill a sharded state dict from a directory of shards."""
    try:
        return dist_checkpointing.load(target, str(path))
    except CheckpointException as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {_root_cause(error)}. Use another step_... directory"
        ) from error


def _is_failed_write(error: BaseException) -> bool:
    """Whether a disk failed, rather than a peer; torch's own writer raises a bare RuntimeError."""
    return not isinstance(error, RuntimeError) or "PytorchStreamWriter" in str(error)


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost error; torch collects those of all ranks in `failures`."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
