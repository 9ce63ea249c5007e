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


@pytest.mark.skipif(
    torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None,
    reason="all of it is here",
)
def test_gpu_tests_without_transformer_engine_are_no_green_run(tmp_path):
    listing = tmp_path / "nvidia-smi"  # where there is no driver, a machine that says it has one
    listing.write_text("#!/bin/sh\necho 'GPU 0: stand-in'\n")
    listing.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MEGATRON_R1_SKIP_INSTALL": "1"}
    environment["MEGATRON_R1_VENV"] = str(tmp_path / "none")
    done = subprocess.run(
        ["bash", ROOT / "tests/run.sh", "-m", "gpu", "--collect-only"],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    missing = ("torch", "Transformer Engine")
    assert any(f"tests: -m gpu: {what}" in done.stderr for what in missing), done.stderr
