"""What is installed, what works with it, and how to get the rest: ``python -m megatron_r1.doctor``.

Every probe runs in a process of its own, with a time limit: a library that crashes while it is
imported is one line of the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from megatron_r1.errors import EXIT_DONE, EXIT_USER_ERROR
from megatron_r1.telemetry.table import render_table

if TYPE_CHECKING:
    import torch

    from megatron_r1.models.precision import Installed

MIN_PYTHON = (3, 11)
PROBE_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 3.0
MAX_DETAIL_CHARS = 72


class Status(Enum):
    """What a probe found."""

    ok = "ok"
    missing = "missing"
    broken = "broken"
    """Installed, and fails when it is used."""


class AbsentError(Exception):
    """Raised by an inspection: what it looks for is not here. Says so in a few words."""


@dataclass(frozen=True)
class Check:
    """Something that may be installed, and how to look at it."""

    name: str
    inspect: Callable[[], str]
    """Returns versions and details; raises `AbsentError`, or whatever the library raises."""
    gives: str
    """What works with it."""
    remedy: str
    """What to do where it is missing or broken."""
    required: bool = False
    """Nothing trains without it."""


@dataclass(frozen=True)
class Probe:
    """What one check found on this machine."""

    name: str
    status: Status
    detail: str
    """Version where it works, reason where it does not."""
    gives: str
    remedy: str
    """Empty where nothing is to be done."""
    required: bool


def inspect_python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < MIN_PYTHON:
        raise RuntimeError(f"{version} is older than 3.11")
    return version


def inspect_module(module: str, distribution: str) -> str:
    """Import `module` and return the version of the distribution that brings it."""
    require(module)
    importlib.import_module(module)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def inspect_torch() -> str:
    require("torch")
    import torch

    cuda = torch.version.cuda
    return f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'a build for CPUs'}"


def inspect_gpus() -> str:
    require("torch")
    import torch

    if torch.version.cuda is None:
        raise AbsentError("this torch is built for CPUs")
    if not torch.cuda.is_available():
        raise AbsentError("no CUDA device; training runs on the CPU")
    properties = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    ]
    names = ", ".join(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB" for gpu in properties)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{len(properties)}: {names}; NCCL {nccl}"


def inspect_apex() -> str:
    """NVIDIA Apex, which PyPI does not hold: the package named apex there is another one."""
    require("apex")
    if importlib.util.find_spec("amp_C") is None:
        raise AbsentError(
            "the apex installed here has no amp_C: not NVIDIA's, or built without CUDA"
        )
    importlib.import_module("torch")  # its extensions link against it
    importlib.import_module("amp_C")
    importlib.import_module("fused_layer_norm_cuda")  # its norms
    if not hasattr(importlib.import_module("apex.optimizers"), "FusedAdam"):
        raise AbsentError("the apex installed here has no FusedAdam: not NVIDIA's")
    return inspect_module("apex", "apex")


def inspect_layers() -> str:
    """Whose layers and optimizer a model is built of on this machine."""
    require("megatron")
    from megatron_r1.platform.host import prepare

    device = prepare().device
    from megatron_r1.models.precision import Installed

    return describe_layers(device, Installed.on(device))


_HEADS = {"heads of 128": (28, 4, 128, 128), "latent heads of 192 and 128": (128, 128, 192, 128)}
"""Qwen2.5's and DeepSeek-V3's: heads, key groups, widths of keys and of values."""


def describe_layers(device: torch.device, installed: Installed) -> str:
    """The layers that models get, which precisions there are, and why not all of them."""
    from megatron_r1.config.precision import DType, PrecisionConfig
    from megatron_r1.models.packed_attention import Heads
    from megatron_r1.models.precision import fit_names, packs_attention, parts_name

    taken, of_float32 = (
        parts_name(PrecisionConfig(dtype=dtype), installed).replace("_", " ")
        for dtype in (DType.bfloat16, DType.float32)
    )
    found = f"{taken} layers on {device.type}"
    if device.type != "cuda":
        return found
    attended = [
        name
        for name, heads in _HEADS.items()
        if packs_attention(PrecisionConfig(dtype=DType.bfloat16), installed, Heads(*heads))
    ]
    if attended:
        found += f", its attention for {' and '.join(attended)}"
    if of_float32 != taken:
        found += f"; {of_float32} with precision=fp32, which the former multiply in TF32"
    problems = {"Transformer Engine": installed.engine_problem, "Apex": installed.apex_problem}
    problems |= {f"fp8 = {fp8.value}": reason for fp8, reason in installed.unfit.items()}
    found += f"; precision={', '.join(fit_names(installed))}"
    return "; ".join([found, *(f"no {name}: {why}" for name, why in problems.items() if why)])


def inspect_kernels() -> str:
    """What R1_KERNELS asks for; commands that compute refuse what cannot be had."""
    require("torch")
    from megatron_r1.command import check_environment

    check_environment()
    return f"R1_KERNELS={os.environ.get('R1_KERNELS', 'auto')}"


def inspect_slurm() -> str:
    version = run_command("sbatch", "--version").removeprefix("slurm ")
    try:
        answer = run_command("scontrol", "ping")
    except (AbsentError, RuntimeError, subprocess.TimeoutExpired):
        answer = ""
    return f"{version}, {'a controller answers' if ' UP' in answer else 'no controller answers'}"


def inspect_sandbox() -> str:
    """By which means code that a policy wrote is shut in here; a program has been run in it."""
    from megatron_r1.config.reward import Isolation
    from megatron_r1.rewards.sandbox.run import problem_of

    lacks = []
    for isolation in (Isolation.bubblewrap, Isolation.namespaces):
        problem = problem_of(isolation)
        if problem is None:
            return f"by {isolation.value}" + (f" ({'; '.join(lacks)})" if lacks else "")
        lacks.append(f"{isolation.value}: {problem}")
    raise RuntimeError("; ".join(lacks))


def inspect_bubblewrap() -> str:
    version = run_command("bwrap", "--version").removeprefix("bubblewrap ")
    run_command("bwrap", "--ro-bind", "/", "/", "--unshare-all", "true")
    return version


def require(module: str) -> None:
    """Raise `AbsentError` when there is no such top-level module; imports nothing."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise AbsentError("not installed")


def run_command(*command: str) -> str:
    """Output of a command that succeeds within `COMMAND_TIMEOUT_S`."""
    if shutil.which(command[0]) is None:
        raise AbsentError("not installed")
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if result.returncode:
        raise RuntimeError(result.stderr.strip() or f"exit code {result.returncode}")
    return result.stdout.strip()


BASE = "pip install -c constraints-cpu.txt -e ."

CHECKS = (
    Check("Python", inspect_python, "everything", "install Python 3.11 or later", required=True),
    Check(
        "PyTorch",
        inspect_torch,
        "everything",
        "pip install torch==2.13.0; pip's own configuration decides whether it takes a CPU or a "
        "CUDA build",
        required=True,
    ),
    Check(
        "GPUs",
        inspect_gpus,
        "training on CUDA with NCCL",
        "a torch built for CUDA, and the NVIDIA driver",
    ),
    Check(
        "Megatron-Core",
        partial(inspect_module, "megatron.core", "megatron-core"),
        "models, parallelism, optimizer",
        BASE,
        required=True,
    ),
    Check("Hydra", partial(inspect_module, "hydra", "hydra-core"), "configuration", BASE, True),
    Check(
        "Transformers",
        partial(inspect_module, "transformers", "transformers"),
        "tokenizers, Hugging Face checkpoints",
        BASE,
        required=True,
    ),
    Check(
        "reasoning-gym",
        partial(inspect_module, "reasoning_gym", "reasoning_gym"),
        "generated problems and their graders",
        BASE,
        required=True,
    ),
    Check(
        "math-verify",
        partial(inspect_module, "math_verify", "math-verify"),
        "grading of mathematical answers",
        BASE,
        required=True,
    ),
    Check(
        "Transformer Engine",
        partial(inspect_module, "transformer_engine.pytorch", "transformer-engine"),
        "fused layers and FP8 on GPUs",
        "on a GPU machine: pip install -e '.[gpu]'",
    ),
    Check(
        "NVIDIA Apex",
        inspect_apex,
        "fused optimizer without Transformer Engine",
        "build NVIDIA's source; pip install apex brings an unrelated package",
    ),
    Check(
        "layers",
        inspect_layers,
        "models; FP8 needs Transformer Engine's, or precision=fp8_block_sim",
        BASE,
    ),
    Check(
        "Triton",
        partial(inspect_module, "triton", "triton"),
        "our kernels, SGLang's kernels",
        "pip install triton (1 GB)",
    ),
    Check(
        "kernels",
        inspect_kernels,
        "log-probabilities, conversions to FP8",
        "unset R1_KERNELS, or R1_KERNELS=auto: Triton where it runs, plain PyTorch elsewhere",
        required=True,
    ),
    Check(
        "SGLang",
        partial(inspect_module, "sglang", "sglang"),
        "rollouts from SGLang servers",
        "with GPUs: pip install -e '.[sglang]'; without: bash launch/setup_env.sh sglang-cpu",
    ),
    Check(
        "NeMo-Run",
        partial(inspect_module, "nemo_run", "nemo-run"),
        "jobs submitted from Python",
        "bash launch/setup_env.sh launch",
    ),
    Check("Slurm", inspect_slurm, "jobs on a cluster", "Debian: apt-get install slurm-wlm munge"),
    Check(
        "sandbox",
        inspect_sandbox,
        "isolation of code that a policy wrote",
        "Debian: apt-get install bubblewrap, and allow user namespaces: sysctl "
        "user.max_user_namespaces",
    ),
    Check(
        "bubblewrap",
        inspect_bubblewrap,
        "the sandbox's first choice",
        "Debian: apt-get install bubblewrap",
    ),
)


def probe_all(checks: Sequence[Check] = CHECKS) -> list[Probe]:
    """Run every check, as many at a time as there are cores, in the order given."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(probe, checks))


def probe(check: Check, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Run one check in a fresh process, and end that process when it exceeds `timeout_s`."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_inspect_in_child, args=(check.inspect, sender), daemon=True)
    process.start()
    sender.close()  # the child holds the only other end, so that its death ends the wait below
    try:
        if receiver.poll(timeout_s):
            status, detail = receiver.recv()
        else:
            status, detail = Status.broken, f"no answer within {timeout_s:g} s"
    except EOFError:
        process.join()
        status, detail = Status.broken, f"the process died, exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return Probe(
        name=check.name,
        status=status,
        detail=detail,
        gives=check.gives,
        remedy="" if status is Status.ok else check.remedy,
        required=check.required,
    )


def _inspect_in_child(inspect: Callable[[], str], sender: Connection) -> None:
    """Send ``(status, detail)``. What libraries print while they are imported goes nowhere."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        answer = Status.ok, inspect()
    except AbsentError as reason:
        answer = Status.missing, str(reason)
    except BaseException as error:  # whatever a broken library raises, SystemExit included
        answer = Status.broken, _one_line(error)
    sender.send(answer)


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 3] + "..."


def can_train(probes: Sequence[Probe]) -> bool:
    """Everything required works."""
    return all(probe.status is Status.ok for probe in probes if probe.required)


def render(probes: Sequence[Probe]) -> str:
    """A table of what was found, what to do about the rest, and the verdict."""
    rows = [[probe.name, f"{probe.status.value}: {probe.detail}", probe.gives] for probe in probes]
    remedies = [f"  {probe.name}: {probe.remedy}" for probe in probes if probe.remedy]
    at_fault = [probe.name for probe in probes if probe.required and probe.remedy]
    verdict = (
        "Training can run here."
        if can_train(probes)
        else f"Training cannot run here before this is mended: {', '.join(at_fault)}."
    )
    sections = [render_table(["what", "found", "gives"], rows)]
    if remedies:
        sections.append("\n".join(["To get the rest:", *remedies]))
    return "\n\n".join([*sections, verdict])


def to_json(probes: Sequence[Probe]) -> str:
    """The same, for programs."""
    found = [{**dataclasses.asdict(probe), "status": probe.status.value} for probe in probes]
    return json.dumps({"can_train": can_train(probes), "probes": found}, indent=2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="megatron_r1.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    probes = probe_all()
    print(to_json(probes) if arguments.json else render(probes))
    return EXIT_DONE if can_train(probes) else EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
