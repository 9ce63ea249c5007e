"""FP8 scales that a model came with: from its files into every checkpoint that is made of it.

Weights are trained in another type, and no scale can be computed back from them
(`r1_kernels/fp8_blocks.py`). Kept beside them, scales are 1/16,384 of their number. The exporter
takes one where it reproduces its block bit for bit: what training has left alone comes back as it
was, the rest gets a new one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.hf_weights import HfWeights
from megatron_r1.checkpoint.record import FP8_SCALES, resolve_checkpoint
from megatron_r1.checkpoint.safetensors_dir import DTYPES
from megatron_r1.checkpoint.safetensors_shards import TensorSpec, shard_file
from megatron_r1.telemetry.files import replace_file


def write_scales(weights: HfWeights, file: Path) -> None:
    """Write the scales of a Hugging Face model's FP8 matrices; no file where it has none."""
    names = weights.scale_names
    if not names:
        return
    entries = weights.files.entries
    specs = [TensorSpec(name, DTYPES[entries[name].dtype], entries[name].shape) for name in names]
    with shard_file(file, specs) as shard:
        for name in names:
            shard.write(name, weights.files.tensor(name))


def carry_scales(model_dir: Path, target: Path) -> None:
    """Put the scales of a run, a checkpoint or a Hugging Face model into the directory `target`.

    Those of another model, which may be there from a start that came to nothing, go.
    """
    file = target / FP8_SCALES
    file.unlink(missing_ok=True)
    if is_hf_directory(model_dir):
        write_scales(HfWeights(model_dir), file)
        return
    kept = resolve_checkpoint(model_dir) / FP8_SCALES
    if kept.is_file():
        with replace_file(file) as draft:
            shutil.copyfile(kept, draft)
