from __future__ import annotations

import json
import os
import sys
import time

import pytest

from megatron_r1.doctor import (
    CHECKS,
    Check,
    Probe,
    Status,
    can_train,
    inspect_apex,
    inspect_kernels,
    inspect_python,
    inspect_sandbox,
    inspect_slurm,
    probe,
    probe_all,
    render,
    run_command,
    to_json,
)


def check(inspect, *, required=False):
    return Check("thing", inspect, gives="a feature", remedy="install it", required=required)


def inspect_fake():
    from megatron_r1.doctor import inspect_module

    return inspect_module("fake_library", "fake-library")


def die():
    os._exit(11)


def hang():
    time.sleep(60)


def chatter():
    print("on stdout")
    os.system("echo from a child of the child")
    return "1.0"


def inspect_absent_command():
    return run_command("no-such-command-anywhere", "--version")


def add_package(monkeypatch, root, name, source):
    (root / name).mkdir()
    (root / name / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(root)


def test_what_works_has_a_version_and_no_remedy():
    found = probe(check(inspect_python))
    version = ".".join(map(str, sys.version_info[:3]))
    assert found == Probe("thing", Status.ok, version, "a feature", remedy="", required=False)


def test_a_package_without_metadata_is_imported_all_the_same(monkeypatch, tmp_path):
    add_package(monkeypatch, tmp_path, "fake_library", "")
    found = probe(check(inspect_fake))
    assert (found.status, found.detail) == (Status.ok, "version unknown")


def test_a_package_that_is_not_there_is_missing():
    found = probe(check(inspect_fake))
    assert (found.status, found.detail) == (Status.missing, "not installed")
    assert found.remedy == "install it"
    assert probe(check(inspect_absent_command)).status is Status.missing


def test_a_package_that_raises_at_import_is_broken(monkeypatch, tmp_path):
    add_package(monkeypatch, tmp_path, "fake_library", "raise OSError('libfoo.so.1:\\n not found')")
    found = probe(check(inspect_fake))
    assert (found.status, found.detail) == (Status.broken, "OSError: libfoo.so.1: not found")


def test_a_package_that_exits_at_import_is_broken(monkeypatch, tmp_path):
    add_package(monkeypatch, tmp_path, "fake_library", "raise SystemExit('needs a licence')")
    assert probe(check(inspect_fake)).detail == "SystemExit: needs a licence"


def test_a_package_that_kills_its_process_is_broken_and_the_rest_goes_on():
    dead, alive = probe_all([check(die), check(inspect_python)])
    assert (dead.status, dead.detail) == (Status.broken, "the process died, exit code 11")
    assert alive.status is Status.ok


def test_a_package_that_hangs_is_ended_at_the_limit():
    started_s = time.monotonic()
    found = probe(check(hang), timeout_s=2.0)
    assert (found.status, found.detail) == (Status.broken, "no answer within 2 s")
    assert time.monotonic() - started_s < 10


def test_what_a_library_prints_does_not_reach_the_table(capfd):
    assert probe(check(chatter)).detail == "1.0"
    assert capfd.readouterr() == ("", "")


def test_the_apex_of_pypi_is_not_nvidias(monkeypatch, tmp_path):
    add_package(monkeypatch, tmp_path, "apex", "raise ImportError('no pyramid here')")
    found = probe(check(inspect_apex))
    assert found.status is Status.missing
    assert "no amp_C: not NVIDIA's" in found.detail


def test_nvidias_apex_is_known_by_what_it_offers(monkeypatch, tmp_path):
    add_package(monkeypatch, tmp_path, "apex", "")
    (tmp_path / "apex" / "optimizers.py").write_text("class FusedAdam: ...")
    (tmp_path / "amp_C.py").write_text("")
    found = probe(check(inspect_apex))  # built without its norms
    assert found.status is Status.broken and "fused_layer_norm_cuda" in found.detail
    (tmp_path / "fused_layer_norm_cuda.py").write_text("")
    assert probe(check(inspect_apex)).status is Status.ok


@pytest.mark.parametrize(
    ("ping", "answer"),
    [
        ("echo 'Slurmctld(primary) at n0 is UP'", "a controller answers"),
        ("echo 'Slurmctld(primary) at n0 is DOWN'; exit 1", "no controller answers"),
        ("exit 1", "no controller answers"),
    ],
)
def test_slurm_is_asked_for_its_version_and_its_controller(monkeypatch, tmp_path, ping, answer):
    for name, body in {"sbatch": "echo slurm 22.05.8", "scontrol": ping}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = probe(check(inspect_slurm))
    assert (found.status, found.detail) == (Status.ok, f"22.05.8, {answer}")


def test_the_sandbox_is_what_the_rewards_would_take():
    from megatron_r1.errors import ConfigError
    from megatron_r1.rewards.sandbox.run import find_isolation

    found = probe(check(inspect_sandbox))
    try:
        means = find_isolation().value
    except ConfigError:
        assert found.status is Status.broken
    else:
        assert found.status is Status.ok and found.detail.startswith(f"by {means}")


def test_training_needs_what_is_required_and_nothing_else():
    fine = Probe("torch", Status.ok, "2.13.0", "everything", "", required=True)
    no_gpu = Probe("GPUs", Status.missing, "none", "speed", "buy one", required=False)
    no_core = Probe("core", Status.broken, "OSError: x", "models", "mend it", required=True)
    assert can_train([fine, no_gpu])
    assert render([fine, no_gpu]).endswith("  GPUs: buy one\n\nTraining can run here.")
    assert not can_train([fine, no_core])
    assert render([fine, no_core]).endswith("Training cannot run here before this is mended: core.")
    assert json.loads(to_json([fine, no_core]))["can_train"] is False


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("auto", None),
        ("foo", "ConfigError: R1_KERNELS must be auto, reference or triton, got 'foo'"),
        ("triton", "ConfigError: R1_KERNELS=triton, and Triton does not run on cpu."),
    ],
)
def test_a_backend_of_kernels_that_cannot_be_had_stops_training(monkeypatch, asked, found):
    monkeypatch.setenv("R1_KERNELS", asked)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (kernels,) = (check for check in CHECKS if check.inspect is inspect_kernels)
    probed = probe(kernels)
    assert can_train([probed]) == (found is None)
    if found:
        assert probed.detail.startswith(found)
        assert render([probed]).endswith("before this is mended: kernels.")
        assert "R1_KERNELS=auto" in probed.remedy


def test_every_check_has_a_name_of_its_own_and_a_remedy():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.remedy and check.gives for check in CHECKS)
