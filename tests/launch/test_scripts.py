"""The sbatch scripts: one header, and each a stage that there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("launch/*.sh") if "#SBATCH" in path.read_text())


def header(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    return [line for line in lines if "--job-name" not in line]


def test_every_section_of_the_paper_has_a_script():
    stages = [f"r1_{name}" for name in ("stage1", "stage2", "stage3", "stage4", "zero")]
    assert {path.stem for path in SCRIPTS} == {*stages, "reward_model", "distill"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_differs_from_the_others_in_its_stage_alone(path):
    text = path.read_text()
    assert header(path) == header(ROOT / "launch/r1_zero.sh")
    assert f"--job-name={path.stem}\n" in text
    (stage,) = re.findall(r'^run_stage (\w+) "\$@"$', text, re.MULTILINE)
    assert (ROOT / f"conf/stage/{stage}.yaml").is_file()
    assert f"launch/{path.name} " in text
    subprocess.run(["bash", "-n", str(path)], check=True)
