"""From a checkpoint of this program to a Hugging Face directory, with little memory.

The checkpoint may have been saved in any layout, with or without optimizer state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_r1.checkpoint.conversion import (
    MEGABYTE,
    ConversionReport,
    WeightDtype,
    group_by_bytes,
    make_report,
)
from megatron_r1.checkpoint.draft import draft_directory, fingerprint
from megatron_r1.checkpoint.hf_weights import cast_finite, check_finite
from megatron_r1.checkpoint.record import (
    FP8_SCALES,
    POLICY,
    TOKENIZER,
    copy_tokenizer,
    model_identity,
    read_state,
    resolve_checkpoint,
    saved_config,
    saved_head,
)
from megatron_r1.checkpoint.safetensors_dir import DTYPES, map_bytes, read_header, read_json
from megatron_r1.checkpoint.safetensors_shards import (
    ShardFile,
    TensorSpec,
    shard_file,
    shard_name,
    write_index,
)
from megatron_r1.checkpoint.sharded_check import check_tensors
from megatron_r1.checkpoint.sharded_keys import place_of
from megatron_r1.checkpoint.sharded_tensors import ShardedReader
from megatron_r1.config.model import DeepseekV3Config, Head, ModelConfig
from megatron_r1.data.tokenizer import load_tokenizer
from megatron_r1.errors import UserError
from megatron_r1.telemetry.progress import Progress
from megatron_r1.weights.fp8_files import SCALE_SUFFIX, is_quantized
from megatron_r1.weights.hf_config import head_from_hf, hf_config, model_config_from_hf
from megatron_r1.weights.names import Form, NameMapping, name_table, to_hf
from r1_kernels.fp8_blocks import BLOCK, num_blocks, quantize


class PolicyWeights:
    """The weights of a checkpoint, as the table of names asks for them."""

    def __init__(self, checkpoint: Path) -> None:
        """Open a checkpoint and compare its tensors with the model it says it is.

        Raises:
            CheckpointError: damaged, incomplete, or of another shape.
        """
        self.path = checkpoint
        record = read_state(checkpoint)
        self.config, self.head = saved_config(checkpoint, record), saved_head(record)
        self.table = name_table(self.config, self.head)
        self.tensors = ShardedReader(checkpoint / POLICY)
        check_tensors(self.tensors, self.config, self.table, checkpoint / "state.json")
        scales = checkpoint / FP8_SCALES
        self._scales = read_header(scales) if scales.is_file() else {}

    def dtype(self, mapping: NameMapping) -> torch.dtype:
        return self.tensors.specs[place_of(mapping.megatron, self.config).key].dtype

    def hf_tensors(self, mapping: NameMapping) -> tuple[Tensor, ...]:
        """The Hugging Face tensors of a parameter.

        Raises:
            CheckpointError: a weight is NaN or infinite, or cannot be read.
        """
        place = place_of(mapping.megatron, self.config)
        if mapping.form is Form.rows:  # each by itself: in the file as it is, most often
            ends = list(accumulate(shape[0] for shape in mapping.shapes))
            spans = map(range, [0, *ends], ends)
            tensors = tuple(self.tensors.part(place.key, place.index, span) for span in spans)
        else:
            tensors = to_hf(mapping, self.tensors.part(place.key, place.index), self.config)
        for tensor in tensors:
            check_finite(tensor, mapping.megatron, self.tensors.file(place.key, place.index))
        return tensors

    def kept_scales(self, name: str) -> Tensor | None:
        """Of the FP8 matrix that the weights may have come from."""
        entry = self._scales.get(name + SCALE_SUFFIX)
        if entry is None:
            return None
        scales = map_bytes(entry.file, entry.start, entry.stop - entry.start)
        return scales.view(DTYPES[entry.dtype]).view(entry.shape).float()

    def is_quantized(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether an FP8 directory has this tensor in FP8: as its source, or as DeepSeek-V3."""
        if self._scales:
            return name + SCALE_SUFFIX in self._scales
        return is_quantized(name, shape)


@dataclass(frozen=True)
class _Item:
    """A parameter and the tensors that it becomes."""

    mapping: NameMapping
    specs: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        return sum(spec.num_bytes for spec in self.specs)


def export_hf(
    source: Path,
    destination: Path,
    *,
    dtype: WeightDtype = WeightDtype.keep,
    shard_bytes: int = 5 * 10**9,
    show_progress: bool = True,
    check: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Write `destination`, a Hugging Face model that transformers and SGLang load as it is.

    Started again after an interruption, it goes on with the first file that is not whole.

    Args:
        source: a checkpoint, or a run, of which the latest is taken.
        shard_bytes: how large a file gets.
        check: looks at what was written before it gets its name; refuses it by a UserError.
    Raises:
        CheckpointError: the source is damaged, or the destination exists; the destination is not
            there then.
    """
    started_s = time.monotonic()
    weights = PolicyWeights(resolve_checkpoint(source))
    items = [_Item(m, tuple(_specs(weights, m, dtype))) for m in weights.table]
    groups = group_by_bytes(items, lambda item: item.num_bytes, limit=shard_bytes)
    shards = [
        (shard_name(i, len(groups)), [spec for item in group for spec in item.specs])
        for i, group in enumerate(groups)
    ]
    total = sum(item.num_bytes for item in items)
    plan = {
        "source": str(weights.path.resolve()),
        "files": fingerprint(weights.path, "**/*"),
        "dtype": dtype.value,
        "shard_bytes": shard_bytes,
    }
    with draft_directory(destination, plan) as draft:
        work = zip(groups, shards, strict=True)
        left = [(group, *shard) for group, shard in work if not (draft / shard[0]).exists()]
        done = total - sum(item.num_bytes for group, *_ in left for item in group)
        with Progress(
            total // MEGABYTE, "MB", "export", initial=done // MEGABYTE, enabled=show_progress
        ) as progress:
            for group, file, specs in left:
                with shard_file(draft / file, specs) as shard:
                    for item in group:
                        _write(shard, weights, item)
                        done += item.num_bytes
                        progress.update(done // MEGABYTE, item.mapping.megatron)
        write_index(draft, shards)
        copy_tokenizer(weights.path / TOKENIZER, draft)
        config_json = exported_config(weights, dtype)
        (draft / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
        report = make_report(sum(len(specs) for _, specs in shards), total, started_s)
        if check is not None:
            check(draft)
    return report


def exported_config(weights: PolicyWeights, dtype: WeightDtype) -> dict[str, Any]:
    """config.json: the one that came with the model where it still describes it, else a new one."""
    tokenizer = weights.path / TOKENIZER
    carried = read_json(tokenizer / "config.json") if (tokenizer / "config.json").exists() else {}
    # No weight tells it, and training may have gone on with longer sequences.
    carried["max_position_embeddings"] = weights.config.max_positions
    is_own = _describes(carried, weights.config, weights.head)
    config_json = carried if is_own else _new_config(weights)
    # Code of the model's own repository, which is not carried along and not needed.
    for key in ("auto_map", "quantization_config", "dtype"):
        config_json.pop(key, None)
    main = dtype.of(weights.table[0], weights.dtype(weights.table[0]))
    config_json["torch_dtype"] = str(main).removeprefix("torch.")
    if dtype is WeightDtype.fp8:
        config_json["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
    return config_json


def _describes(config_json: dict[str, Any], config: ModelConfig, head: Head) -> bool:
    if isinstance(config, DeepseekV3Config):  # see hf_weights: files may lack what is counted there
        config_json["num_nextn_predict_layers"] = config.num_mtp_layers
    try:
        theirs = model_config_from_hf(config_json, "config.json")
    except UserError:  # a tokenizer's directory may hold the config.json of anything
        return False
    return model_identity(theirs) == model_identity(config) and head_from_hf(config_json) is head


def _new_config(weights: PolicyWeights) -> dict[str, Any]:
    config_json = hf_config(weights.config, weights.head)
    if (weights.path / TOKENIZER / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(weights.path / TOKENIZER)
        config_json |= {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        if weights.head is Head.scalar and tokenizer.pad_id == tokenizer.eos_id:
            # transformers scores at the last token that is no padding; ours is the end of sequence.
            config_json["pad_token_id"] = None
    return config_json


def _specs(
    weights: PolicyWeights, mapping: NameMapping, dtype: WeightDtype
) -> Iterator[TensorSpec]:
    plain = dtype.of(mapping, weights.dtype(mapping))
    for name, shape in zip(mapping.hf, mapping.shapes, strict=True):
        if dtype is WeightDtype.fp8 and weights.is_quantized(name, shape):
            yield TensorSpec(name, torch.float8_e4m3fn, shape)
            yield TensorSpec(name + SCALE_SUFFIX, torch.float32, num_blocks(shape))
        else:
            yield TensorSpec(name, plain, shape)
    for name in mapping.copies:
        yield TensorSpec(name, plain, mapping.shapes[0])


def _write(shard: ShardFile, weights: PolicyWeights, item: _Item) -> None:
    mapping = item.mapping
    tensors = weights.hf_tensors(mapping)
    values = dict(zip(mapping.hf, tensors, strict=True)) | dict.fromkeys(mapping.copies, tensors[0])
    for spec in item.specs:
        if spec.name not in values:
            continue  # scales, written with their matrix
        if spec.dtype is torch.float8_e4m3fn:
            codes, scales = quantize(values[spec.name], weights.kept_scales(spec.name))
            shard.write(spec.name, codes)
            shard.write(spec.name + SCALE_SUFFIX, scales)
        else:
            value = cast_finite(values[spec.name], spec.dtype, spec.name, weights.path)
            shard.write(spec.name, value)
