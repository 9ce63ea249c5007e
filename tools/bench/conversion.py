"""Conversion against cp: speed in both directions, and how much memory it takes.

    python tools/bench/conversion.py [--directory DIR] [--runs 3] [model=qwen2.5_1.5b ...]

Writes a random model of 4 GB in bfloat16 as Hugging Face files, then, in every run: copies them
with cp, converts them to Megatron and back with the tools' own command lines, and compares the
bytes. Prints the speed of each as a share of cp's, from an idle disk; cp leaves the end of its work
to the system, conversion waits until all is on the disk. The tools' start-up is not counted. Needs
four times the model's size on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_r1.checkpoint.conversion import group_by_bytes
from megatron_r1.checkpoint.safetensors_dir import SafetensorsDir
from megatron_r1.checkpoint.safetensors_shards import (
    TensorSpec,
    shard_file,
    shard_name,
    write_index,
)
from megatron_r1.config.load import load_config
from megatron_r1.config.model import ModelConfig
from megatron_r1.telemetry.table import render_table
from megatron_r1.weights.hf_config import hf_config
from megatron_r1.weights.names import name_table

FOLDER = Path(__file__).resolve().parents[1]
TOOLS = {
    "convert_hf_to_megatron.py": ("hub", "megatron"),
    "convert_megatron_to_hf.py": ("megatron", "back"),
}
"""What each reads and writes."""
DEFAULT_MODEL = ["model=qwen2.5_1.5b", "model.num_layers=38"]  # 2.0 B parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", default=DEFAULT_MODEL)
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    config = load_config(arguments.overrides).model
    with tempfile.TemporaryDirectory(dir=arguments.directory) as temporary:
        root = Path(temporary)
        num_bytes = write_model(root / "hub", config)
        runs = [one_run(root) for _ in range(arguments.runs)]
    print(f"{num_bytes / 1e9:.2f} GB; peak is that of the whole process")
    columns = ["cp s", "import s", "of cp", "peak GB", "export s", "of cp", "peak GB"]
    print(render_table(columns, [cells(run) for run in runs]))
    for tool in TOOLS:
        shares = [run.copy_s / run.tools[tool][0] for run in runs]
        print(f"{tool}: median {statistics.median(shares):.0%} of cp")


def write_model(directory: Path, config: ModelConfig) -> int:
    directory.mkdir()
    table = name_table(config)
    specs = [
        TensorSpec(name, torch.bfloat16, shape)
        for mapping in table
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True)
    ]
    groups = group_by_bytes(specs, lambda spec: spec.num_bytes, limit=2 * 10**9)
    shards = [(shard_name(i, len(groups)), group) for i, group in enumerate(groups)]
    for file, group in shards:
        with shard_file(directory / file, group) as shard:
            for spec in group:
                shard.write(spec.name, torch.randn(spec.shape).to(spec.dtype))
    write_index(directory, shards)
    (directory / "config.json").write_text(json.dumps(hf_config(config)))
    return sum(spec.num_bytes for spec in specs)


@dataclass(frozen=True)
class Run:
    """One round: seconds of cp, and of each tool seconds and peak memory in GB."""

    copy_s: float
    tools: dict[str, tuple[float, float]]


def one_run(root: Path) -> Run:
    """What was written is deleted again."""
    os.sync()
    started_s = time.monotonic()
    subprocess.run(["cp", "-r", root / "hub", root / "copy"], check=True)
    copy_s = time.monotonic() - started_s
    shutil.rmtree(root / "copy")
    figures = {}
    for tool, (source, target) in TOOLS.items():
        os.sync()
        command = [sys.executable, FOLDER / tool, root / source, root / target]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = re.search(r"in ([\d.]+) s .* peak memory ([\d.]+) GB", done.stdout)
        figures[tool] = (float(found[1]), float(found[2]))
    for file in (root / "hub").glob("*.safetensors"):
        assert same_tensors(file, root / "back"), file
    shutil.rmtree(root / "megatron")
    shutil.rmtree(root / "back")
    return Run(copy_s, figures)


def cells(run: Run) -> list[str]:
    row = [f"{run.copy_s:.1f}"]
    for seconds, peak_gb in run.tools.values():
        row += [f"{seconds:.1f}", f"{run.copy_s / seconds:.0%}", f"{peak_gb:.2f}"]
    return row


def same_tensors(file: Path, back: Path) -> bool:
    """Whether all tensors of a file came back the same."""
    old, new = SafetensorsDir(file.parent), SafetensorsDir(back)
    names = (name for name, entry in old.entries.items() if entry.file == file)
    return all(torch.equal(old.tensor(name), new.tensor(name)) for name in names)


if __name__ == "__main__":
    main()
