"""Save and load a run's state under `<run>/checkpoints/`.

    checkpoints/step_000123/policy/      Megatron distributed checkpoint: weights and optimizer
    checkpoints/step_000123/reference/   the reference policy's weights, where the run keeps one
    checkpoints/step_000123/tokenizer/   so that a checkpoint can be used by itself
    checkpoints/step_000123/state.json   the loop's counters, the model's shape, every file's size
    checkpoints/latest                   name of the newest whole checkpoint

A checkpoint is written under another name, flushed to the disk and renamed; `latest` follows by a
rename of its own. Killed at any moment, a run finds its last whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from megatron_r1.config.model import ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.telemetry.files import replace_file

FORMAT = "megatron_r1/1"
REFERENCE = "reference"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
)
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


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep: int, tokenizer_dir: Path | None) -> None:
        self._dir = run_dir / "checkpoints"
        self._keep = keep
        self._tokenizer_dir = tokenizer_dir

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None when there is none."""
        return latest_checkpoint(self._dir)

    def save(
        self,
        state: LoopState,
        policy: Policy,
        optimizer: MegatronOptimizer,
        bank: WeightBank | None = None,
    ) -> Path:
        """Write a checkpoint; every rank calls it. Earlier ones stay until it is whole.

        Raises:
            CheckpointError: the disk is full or failed; the previous checkpoints are untouched.
        """
        final = self._dir / f"step_{state.step:06d}"
        partial = self._dir / f".partial_{final.name}"
        with_reference = bank is not None and REFERENCE in bank

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / "policy").mkdir(parents=True)
            if with_reference:
                (partial / REFERENCE).mkdir()

        def finish() -> None:
            if self._tokenizer_dir is not None:
                _copy_tokenizer(self._tokenizer_dir, partial / "tokenizer")
            _write_state(partial, state, policy)
            _publish(partial, final)
            self._prune(newest=final)

        try:
            on_main_rank(begin)
            dist_checkpointing.save(_state_dict(policy, optimizer), str(partial / "policy"))
            if with_reference:
                with bank.use(REFERENCE):
                    weights = {"model": policy.model.sharded_state_dict()}
                    dist_checkpointing.save(weights, str(partial / REFERENCE))
            on_main_rank(finish)
        except (OSError, RuntimeError, CheckpointException) as error:
            if not _is_failed_write(error):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            last = self.latest()
            kept = f"{last} is whole. " if last is not None else ""
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written to {self._dir}: "
                f"{_root_cause(error)}. {kept}Make room and start the run again"
            ) from error
        return final

    def load(
        self,
        path: Path,
        policy: Policy,
        optimizer: MegatronOptimizer,
        bank: WeightBank | None = None,
    ) -> LoopState:
        """Put a checkpoint into the policy, the optimizer and the bank; the layout may differ.

        In the layout that saved it the run goes on bit for bit.
        """
        record = read_state(path)
        check_same_model(path, record, policy.config)
        if bank is not None and (path / REFERENCE).is_dir():
            _load_weights(policy, path / REFERENCE)
            bank.store(REFERENCE)
        target = _state_dict(policy, optimizer, is_loading=True)
        loaded = _read(target, path / "policy")
        policy.model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        _separate_step_counts(optimizer)
        return LoopState(**record["loop"])

    def _prune(self, *, newest: Path) -> None:
        whole = sorted(p for p in self._dir.glob("step_*") if p.is_dir() and p != newest)
        for old in whole[: max(0, len(whole) - (self._keep - 1))]:
            shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names under this directory."""
    pointer = checkpoints / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_text().strip()
    path = checkpoints / name
    if not name or not path.is_dir():
        raise CheckpointError(
            f"{pointer} names {name!r}, which is not there. Write the name of a step_... "
            f"directory that is into {pointer}, or delete it to start over"
        )
    return path


def resolve_checkpoint(path: Path) -> Path:
    """A checkpoint by its own directory, its checkpoints/, its run, or the quickstart it ended."""
    for candidate in (path, path / "checkpoints", path / "r1_zero/checkpoints"):
        if (candidate / "state.json").is_file():
            return candidate
        if (candidate / "latest").is_file():
            found = latest_checkpoint(candidate)
            if found is not None:
                return found
    raise CheckpointError(
        f"{path} holds no checkpoint of this program: neither state.json nor latest is there. "
        "Point model.init_from at a run directory or at one of its checkpoints/step_... directories"
    )


def load_weights(policy: Policy, path: Path) -> None:
    """Weights alone, e.g. for `model.init_from`."""
    check_same_model(path, read_state(path), policy.config)
    _load_weights(policy, path / "policy")


def read_state(path: Path) -> dict[str, Any]:
    """state.json, after checking that every file it lists is there in full.

    Raises:
        CheckpointError: not ours, unreadable, or a file is missing or has another size.
    """
    state_file = path / "state.json"
    try:
        record = json.loads(state_file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{state_file} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{state_file} was not written by this program (format {FORMAT})")
    missing = {"files", "model", "loop"} - record.keys()
    if missing:
        raise CheckpointError(f"{state_file} is damaged: it lacks {', '.join(sorted(missing))}")
    for name, size in record["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is incomplete: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} has {file.stat().st_size} bytes instead of "
                f"{size}. Use another step_... directory beside it"
            )
    return record


def check_same_model(path: Path, record: dict[str, Any], config: ModelConfig) -> None:
    """Refuse a checkpoint of another model, naming what differs."""
    saved, own = record["model"], model_identity(config)
    differing = [
        f"model.{key}: checkpoint {saved.get(key)!r}, configuration {own.get(key)!r}"
        for key in sorted(saved.keys() | own.keys())
        if saved.get(key) != own.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"checkpoint {path} holds another model than the configuration describes: "
            + "; ".join(differing)
        )


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """What makes two models the same, as JSON: not how they were drawn or how they are trained."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.value if isinstance(value, Enum) else value

    fields = plain(dataclasses.asdict(config))
    for key in ("name", "init_from", "init_std", "balance_loss", "bias_update_rate"):
        fields.pop(key, None)
    return fields


def _state_dict(
    policy: Policy, optimizer: MegatronOptimizer, *, is_loading: bool = False
) -> dict[str, Any]:
    _complete_adam_state(optimizer)
    model = policy.model.sharded_state_dict()
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


def _load_weights(policy: Policy, path: Path) -> None:
    target = {"model": policy.model.sharded_state_dict()}
    policy.model.load_state_dict(_read(target, path)["model"])


def _read(target: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fill a sharded state dict from a directory of shards."""
    try:
        return dist_checkpointing.load(target, str(path))
    except CheckpointException as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {_root_cause(error)}. Use another step_... directory"
        ) from error


def _write_state(partial: Path, state: LoopState, policy: Policy) -> None:
    record = {
        "format": FORMAT,
        "loop": dataclasses.asdict(state),
        "layout": policy.layout.describe(),
        "model": model_identity(policy.config),
        "torch": torch.__version__,
        "files": {str(f.relative_to(partial)): f.stat().st_size for f in _files(partial)},
    }
    (partial / "state.json").write_text(json.dumps(record, indent=1) + "\n")


def _publish(partial: Path, final: Path) -> None:
    """Flush, then rename: the name of a whole checkpoint never stands for less."""
    for path in (partial, *partial.rglob("*")):
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    with replace_file(final.parent / "latest") as pointer:
        pointer.write_text(final.name + "\n")
        _flush(pointer)
    _flush(final.parent)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's own files: its directory may hold a whole model beside them."""
    target.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


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
