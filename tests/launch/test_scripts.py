"""The sbatch scripts: one header, each a stage that there is, with an example that runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import ConfigError

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in ROOT.glob("launch/*.sh") if "#SBATCH" in path.read_text())
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def header(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    return [line for line in lines if "--job-name" not in line]


def commands(text: str) -> list[str]:
    """The commands of a text, each with the lines that it goes on in."""
    joined = re.sub(r" \\\n[# ]*", " ", text)
    lines = [line.lstrip("# ") for line in joined.splitlines()]
    starts = ("sbatch ", "python -m megatron_r1.train ", "torchrun ")
    return [line for line in lines if line.startswith(starts)]


def complete_commands(path: Path) -> list[str]:
    """Without those that say what may stand there, or leave something out."""
    return [c for c in commands(path.read_text()) if "..." not in c and "[overrides]" not in c]


def validate(command: str) -> RunConfig:
    """What a command asks for is possible on the ranks that it starts. Returns what it asks for."""
    words = shlex.split(command, comments=True)
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    world_size = 1
    if words[0] == "torchrun":
        world_size = int(words[words.index("--nproc-per-node") + 1])
    if words[0] == "sbatch":
        script = ROOT / next(word for word in words if word.endswith(".sh"))
        in_header = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", script.read_text(), re.M))
        nodes = words[words.index("-N") + 1] if "-N" in words else in_header["nodes"]
        world_size = int(nodes) * int(in_header["ntasks-per-node"])
        overrides.insert(0, "cluster=slurm")
        if not any(word.startswith(("stage=", "experiment=")) for word in overrides):
            (stage,) = re.findall(r"^run_stage (\w+) ", script.read_text(), re.MULTILINE)
            overrides.insert(0, f"stage={stage}")
    config = load_config(overrides)
    config.validate(world_size)
    return config


@pytest.mark.parametrize("name", ["r1_stage1", "r1_stage3", "distill"])
def test_sft_of_the_papers_size_packs_32768_tokens(name):
    """R1 B.4.2 and B.4.3. Stages that sample hold a prompt beside the longest response too; the
    default of 4,096 is refused."""
    (command,) = complete_commands(ROOT / f"launch/{name}.sh")
    config = validate(command)
    room = config.parallel.packable_tokens(config.precision)
    prompt = 0 if name == "distill" else config.data.max_prompt_tokens
    assert (config.stage.max_tokens, room) == (32_768, 32_768 + prompt)
    with pytest.raises(ConfigError, match="parallel.max_tokens_per_microbatch = 4096"):
        validate(re.sub(r"parallel.max_tokens_per_microbatch=\d+", "", command))


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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_example_of_a_script_is_possible_on_its_nodes(path):
    (example,) = complete_commands(path)
    assert "-N 8" in example
    validate(example)


@pytest.mark.parametrize(
    "command",
    [command for path in TEXTS for command in complete_commands(path)],
    ids=lambda command: command.split("megatron_r1.")[-1][:60],
)
def test_a_whole_command_in_the_documents_is_possible(command):
    validate(command)
