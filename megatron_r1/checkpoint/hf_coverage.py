"""Whether the tensors of a Hugging Face directory are those of the model its config.json describes.

Names are enough: config.json and the index, without a weight. Where the files are there, shapes are
compared too.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_r1.checkpoint.safetensors_dir import (
    INDEX,
    SafetensorsDir,
    TensorEntry,
    read_index,
    read_json,
)
from megatron_r1.config.model import DeepseekV3Config, Head, ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.weights.fp8_files import SCALE_SUFFIX
from megatron_r1.weights.hf_config import head_from_hf, model_config_from_hf
from megatron_r1.weights.names import NameMapping, name_table
from r1_kernels.fp8_blocks import num_blocks

_NO_WEIGHTS = ("rotary_emb.inv_freq",)
"""What older files hold besides; computed from the configuration."""
_SHOWN = 5


@dataclass(frozen=True)
class Coverage:
    """How the tensors of a directory and those of a model compare."""

    num_expected: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """Each with both shapes."""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def describe(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("misshapen", self.misshapen),
        )
        return "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in parts if names)


def is_hf_directory(path: Path) -> bool:
    """Whether it is meant as a Hugging Face model, complete or not."""
    return (path / "config.json").is_file() and not (path / "state.json").is_file()


def read_hf_config(path: Path) -> ModelConfig:
    """The model that config.json describes."""
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no Hugging Face model: it has no config.json")
    return model_config_from_hf(read_json(file), str(file))


def read_hf_head(path: Path) -> Head:
    """What the model that config.json describes ends in."""
    read_hf_config(path)  # refuses what is none
    return head_from_hf(read_json(path / "config.json"))


def index_coverage(path: Path) -> tuple[ModelConfig, Coverage]:
    """Compare the index with config.json; shapes too where the files are there."""
    config = read_hf_config(path)
    entries: Mapping[str, TensorEntry | None] = dict.fromkeys(read_index(path))
    if not (path / INDEX).is_file() or all((path / f).is_file() for f in read_index(path).values()):
        entries = SafetensorsDir(path).entries
    config = without_absent_mtp(config, entries)
    return config, coverage(config, name_table(config, read_hf_head(path)), entries)


def coverage(
    config: ModelConfig, table: list[NameMapping], entries: Mapping[str, TensorEntry | None]
) -> Coverage:
    """Compare tensors with a model.

    Args:
        entries: what headers say of each tensor; None where only its name is known.
    """
    expected = {
        name: shape
        for mapping in table
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True)
    }
    allowed = {name: mapping.shapes[0] for mapping in table for name in mapping.copies}
    if config.tie_embeddings:
        allowed["lm_head.weight"] = table[0].shapes[0]
    missing, misshapen = [name for name in expected if name not in entries], []
    for name, entry in entries.items():
        if entry is not None and entry.dtype == "F8_E4M3" and name + SCALE_SUFFIX not in entries:
            missing.append(name + SCALE_SUFFIX)
    allowed |= expected | {
        name + SCALE_SUFFIX: num_blocks(shape)
        for name, shape in expected.items()
        if len(shape) == 2 and _may_have_scales(entries.get(name))
    }
    unexpected = []
    for name, entry in entries.items():
        if name not in allowed:
            if not name.endswith(_NO_WEIGHTS):
                unexpected.append(name if entry is None else f"{name} in {entry.file.name}")
        elif entry is not None and entry.shape != allowed[name]:
            misshapen.append(
                f"{name} in {entry.file.name}: {list(entry.shape)} instead of {list(allowed[name])}"
            )
    return Coverage(len(expected), tuple(missing), tuple(unexpected), tuple(misshapen))


def describe_tensors(table: Iterable[NameMapping]) -> str:
    """One line for all tensors of a kind: how many, name with * for numbers, shape, ours."""
    kinds: Counter[tuple[str, str, str]] = Counter()
    for mapping in table:
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True):
            kinds[_starred(name), str(list(shape)), _starred(mapping.megatron)] += 1
    rows = [(f"{count:,}", *kind) for kind, count in kinds.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        f"{count:>{widths[0]}}  {name:{widths[1]}}  {shape:{widths[2]}}  {ours}"
        for count, name, shape, ours in rows
    )


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _may_have_scales(entry: TensorEntry | None) -> bool:
    return entry is None or entry.dtype == "F8_E4M3"


def _some(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def absent_mtp_note(path: Path, config: ModelConfig) -> str:
    """A line for prediction layers that config.json counts and no file holds; empty without.

    Args:
        config: what `without_absent_mtp` made of it.
    """
    counted = read_hf_config(path).num_mtp_layers
    if counted == config.num_mtp_layers:
        return ""
    return (
        f"note: {path / 'config.json'} counts {counted} prediction layer(s) "
        f"(num_nextn_predict_layers), and no file holds model.layers.{config.num_layers}.*: taken "
        "as a model without, and model.num_mtp_layers is 0. transformers does not write them; "
        "the files that the model was published with have them"
    )


def without_absent_mtp(config: ModelConfig, names: Iterable[str]) -> ModelConfig:
    """transformers leaves the multi-token prediction layers out of the files that it writes, and
    their number in config.json."""
    mtp = isinstance(config, DeepseekV3Config) and config.num_mtp_layers
    first = f"model.layers.{config.num_layers}."
    if mtp and not any(name.startswith(first) for name in names):
        return dataclasses.replace(config, num_mtp_layers=0)
    return config
