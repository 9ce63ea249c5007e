"""`tests/run.sh -m gpu` on a machine with a GPU and without what its tests need."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """The script, where there is no driver on a machine that says it has one."""
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: stand-in'\n")
    listing.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MEGATRON_R1_SKIP_INSTALL": "1"}
    environment["MEGATRON_R1_VENV"] = str(tmp_path / "none")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        # One file of tests: where nothing is missing it is listed, and not run.
        command = ["bash", ROOT / "tests/run.sh", *arguments, "--collect-only", "-n", "0", __file__]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)

    return run


@pytest.mark.skipif(
    torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None,
    reason="all of it is here",
)
@pytest.mark.parametrize(
    "arguments", [["-m", "gpu"], ["-m", "megatron and gpu"], ["-x", "-mgpu or megatron"]]
)
def test_gpu_tests_without_transformer_engine_are_no_green_run(arguments, run):
    done = run(*arguments)
    assert done.returncode == 2, done.stdout
    missing = ("torch", "Transformer Engine")
    assert any(f"tests: -m gpu: {what}" in done.stderr for what in missing), done.stderr


@pytest.mark.parametrize("arguments", [["-m", "not gpu and not multi_gpu"], ["-k", "gpu"]])
def test_other_tests_do_not_ask_for_transformer_engine(arguments, run):
    done = run(*arguments)
    assert done.returncode == 0 and "tests: -m gpu" not in done.stderr, done.stderr
    assert "collected" in done.stdout
