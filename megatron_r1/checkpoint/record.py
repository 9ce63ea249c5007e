"""What a checkpoint's directory holds and says of itself; needs neither torch nor Megatron-Core.

A checkpoint is a directory:

    policy/                  Megatron distributed checkpoint: weights and, from training, optimizer
    reference/               the reference policy's weights, where the run keeps one
    critic/                  PPO's critic, weights and optimizer
    tokenizer/               so that a checkpoint can be used by itself
    fp8_scales.safetensors   scales of weights that were converted from FP8, for the way back
    state.json               the loop's counters, the model's shape, every file's size
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from megatron_r1.checkpoint.typed_fields import check_type, from_json
from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    Head,
    ModelConfig,
    Qwen3MoeConfig,
)
from megatron_r1.errors import CheckpointError

FORMAT = "megatron_r1/1"
POLICY, REFERENCE, CRITIC, TOKENIZER = "policy", "reference", "critic", "tokenizer"
FP8_SCALES = "fp8_scales.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tiktoken.model",
    "tokenization_moonshot.py",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)
"""What lies beside the weights in a Hugging Face directory and goes with them."""

_FIELDS = {"files": dict, "model": dict, "loop": dict, "layout": str}
"""Of state.json, and their types."""
_NOT_IDENTITY = ("name", "init_from", "init_std", "balance_loss", "bias_update_rate", "mtp_loss")


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names under this directory."""
    pointer = checkpoints / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_text(errors="replace").strip()
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
        "Name a run directory, one of its checkpoints/step_... directories, or for model.init_from "
        "a Hugging Face model, with its config.json"
    )


def read_state(path: Path) -> dict[str, Any]:
    """state.json, after checking its structure and that every file it lists is there in full.

    Raises:
        CheckpointError: not ours, unreadable, damaged, or a file is missing or has another size.
    """
    state_file = path / "state.json"
    try:
        record = json.loads(state_file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{state_file} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{state_file} was not written by this program (format {FORMAT})")
    missing = _FIELDS.keys() - record.keys()
    if missing:
        raise CheckpointError(f"{state_file} is damaged: it lacks {', '.join(sorted(missing))}")
    for name, expected in _FIELDS.items():
        check_type(record[name], expected, f"{state_file}: {name}")
    saved_head(record, state_file)
    for name, size in record["files"].items():
        check_type(size, int, f"{state_file}: files[{name!r}]")
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is incomplete: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(
                f"checkpoint {path} is damaged: {name} has {file.stat().st_size} bytes instead of "
                f"{size}. Use another step_... directory beside it"
            )
    return record


def check_same_model(path: Path, record: dict[str, Any], config: ModelConfig, head: Head) -> None:
    """Refuse a checkpoint of another model, naming what differs.

    A model with a scalar head takes a language model's body, without its prediction layers. The
    longest sequence may differ: positions are rotary, and no weight belongs to one.
    """
    if head is Head.vocabulary and saved_head(record) is Head.scalar:
        raise CheckpointError(
            f"checkpoint {path} has a scalar head, as reward models and critics do, and cannot "
            "write. Name a language model's checkpoint"
        )
    saved, own = dict(record["model"]), model_identity(config)
    if type(saved.get("max_positions")) is int:
        saved["max_positions"] = own["max_positions"]
    if head is Head.scalar:
        saved["num_mtp_layers"] = own["num_mtp_layers"]
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


def longer_than_made_for(path: Path, max_positions: int, config: ModelConfig) -> str | None:
    """What is to be said where a model goes on with longer sequences than it was made for.

    Args:
        max_positions: what the model at `path` says of itself.
    """
    if config.max_positions <= max_positions:
        return None
    return (
        f"note: {path} was made for sequences of {max_positions} tokens, and model.max_positions = "
        f"{config.max_positions}: it has to learn what comes behind them"
    )


def saved_head(record: dict[str, Any], state_file: Path = Path("state.json")) -> Head:
    """What the model of a checkpoint ends in."""
    head = record.get("head", Head.vocabulary.value)
    try:
        return Head(head)
    except ValueError as error:
        raise CheckpointError(
            f"{state_file} is damaged: head is {head!r}, none of "
            + ", ".join(member.value for member in Head)
        ) from error


def model_identity(config: ModelConfig) -> dict[str, Any]:
    """What makes two models the same, as JSON: not how they were drawn or how they are trained."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.value if isinstance(value, Enum) else value

    fields = plain(dataclasses.asdict(config) | {"rope": config.rope.settings_in_use()})
    for key in _NOT_IDENTITY:
        fields.pop(key, None)
    return fields


def saved_config(path: Path, record: dict[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint's model, out of its state.json.

    Raises:
        CheckpointError: no family has just these settings, as in a checkpoint of another version,
            or one is damaged.
    """
    saved = record["model"]
    for schema in (DeepseekV3Config, Qwen3MoeConfig, GroupedQueryConfig):
        if saved.keys() == {f.name for f in dataclasses.fields(schema)} - set(_NOT_IDENTITY):
            return from_json(schema, {"name": path.name, **saved}, f"{path / 'state.json'}: model")
    raise CheckpointError(
        f"{path / 'state.json'} describes a model that this version does not know: "
        + ", ".join(sorted(saved))
    )


def write_record(
    directory: Path, config: ModelConfig, *, loop: dict[str, int], layout: str, **more: Any
) -> None:
    """state.json, of a directory that holds all its other files."""
    record = {
        "format": FORMAT,
        "loop": loop,
        "layout": layout,
        "model": model_identity(config),
        **more,
        "files": {
            str(file.relative_to(directory)): file.stat().st_size
            for file in files_of(directory)
            if file != directory / "state.json"  # of an attempt that was interrupted
        },
    }
    (directory / "state.json").write_text(json.dumps(record, indent=1) + "\n")


def forget_origin(directory: Path) -> None:
    """Take out of torch's index of each part where and when it was written: a path, a random
    number, and which of its writers ended first. The same state is then the same bytes, and a hash
    knows a model that was made again."""
    for file in directory.glob("*/.metadata"):
        index = pickle.loads(file.read_bytes())
        index.storage_meta = None
        places = sorted(
            index.storage_data.items(), key=lambda item: (item[1].relative_path, item[1].offset)
        )
        index.storage_data = dict(places)
        file.write_bytes(pickle.dumps(index))


def publish(partial: Path, final: Path) -> None:
    """Flush, then rename: the name of a whole directory never stands for less."""
    for path in (partial, *partial.rglob("*")):
        flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    flush(final.parent)


def files_of(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def flush(path: Path) -> None:
    """To the disk, be it a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's own files: its directory may hold a whole model beside them."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
