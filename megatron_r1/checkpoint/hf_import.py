"""From a Hugging Face directory to a checkpoint of this program, with little memory.

The checkpoint loads in every layout: it names tensors of the whole model, not of a rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from pathlib import Path

from megatron_r1.checkpoint.conversion import (
    MEGABYTE,
    ConversionReport,
    WeightDtype,
    group_by_bytes,
    make_report,
)
from megatron_r1.checkpoint.draft import draft_directory, fingerprint
from megatron_r1.checkpoint.fp8_scales import write_scales
from megatron_r1.checkpoint.hf_coverage import absent_mtp_note
from megatron_r1.checkpoint.hf_weights import HfWeights, cast_finite
from megatron_r1.checkpoint.record import (
    FP8_SCALES,
    POLICY,
    TOKENIZER,
    copy_tokenizer,
    write_record,
)
from megatron_r1.checkpoint.sharded_keys import place_of, sharded_specs
from megatron_r1.checkpoint.sharded_tensors import (
    ChunkFile,
    ShardedSpec,
    chunk_file,
    finish_checkpoint,
)
from megatron_r1.errors import ConfigError
from megatron_r1.telemetry.progress import Progress
from megatron_r1.weights.names import NameMapping


def import_hf(
    source: Path,
    destination: Path,
    *,
    dtype: WeightDtype = WeightDtype.keep,
    file_bytes: int = 4 * 10**9,
    show_progress: bool = True,
    check: Callable[[Path], None] | None = None,
) -> ConversionReport:
    """Write `destination`, a checkpoint with the weights of `source` and no optimizer state.

    Started again after an interruption, it goes on with the first file that is not whole.

    Args:
        file_bytes: how large a data file gets, and so what an interruption can cost.
        check: looks at what was written before it gets its name; refuses it by a UserError.
    Raises:
        CheckpointError, ConfigError: the source is damaged or not supported, or the destination
            exists; the destination is not there then.
    """
    if dtype is WeightDtype.fp8:
        raise ConfigError("dtype fp8 is for Hugging Face directories; train from bfloat16")
    started_s = time.monotonic()
    weights = HfWeights(source)
    config, table = weights.config, weights.table
    specs = sharded_specs(config, table, lambda m: dtype.of(m, weights.dtype(m)))

    def num_bytes(mapping: NameMapping) -> int:
        item = specs[place_of(mapping.megatron, config).key].dtype.itemsize
        return prod(mapping.megatron_shape) * item

    groups = group_by_bytes(table, num_bytes, limit=file_bytes)
    files = [f"__0_{number}.distcp" for number in range(len(groups))]
    total = sum(map(num_bytes, table))
    plan = {
        "source": str(source.resolve()),
        "files": fingerprint(source, "*.safetensors") | fingerprint(source, "*.json"),
        "dtype": dtype.value,
        "file_bytes": file_bytes,
    }
    with draft_directory(destination, plan) as draft:
        policy = draft / POLICY
        policy.mkdir(exist_ok=True)
        work = zip(files, groups, strict=True)
        left = [(file, group) for file, group in work if not (policy / file).exists()]
        done = total - sum(num_bytes(mapping) for _, group in left for mapping in group)
        with Progress(
            total // MEGABYTE, "MB", "import", initial=done // MEGABYTE, enabled=show_progress
        ) as progress:
            for file, group in left:
                with chunk_file(policy / file) as chunks:
                    for mapping in group:
                        _write(chunks, weights, mapping, specs)
                        done += num_bytes(mapping)
                        progress.update(done // MEGABYTE, mapping.megatron)
        finish_checkpoint(policy, specs, files)
        write_scales(weights, draft / FP8_SCALES)
        copy_tokenizer(source, draft / TOKENIZER)
        loop = {"step": 0, "prompts_drawn": 0}
        layout = f"converted from {source.name}"
        write_record(draft, config, loop=loop, layout=layout, head=weights.head.value)
        note = absent_mtp_note(source, config)
        report = make_report(len(table), total, started_s, note)
        if check is not None:
            check(draft)
    return report


def _write(
    chunks: ChunkFile, weights: HfWeights, mapping: NameMapping, specs: dict[str, ShardedSpec]
) -> None:
    place = place_of(mapping.megatron, weights.config)
    dtype = specs[place.key].dtype
    ones = (1,) * len(place.index)
    for row, tensor in weights.pieces(mapping):
        offsets = (*place.index, row, *(0,) * (tensor.ndim - 1))
        cast = cast_finite(tensor, dtype, mapping.hf[0], weights.path)
        chunks.write(place.key, offsets, (*ones, *tensor.shape), cast)
