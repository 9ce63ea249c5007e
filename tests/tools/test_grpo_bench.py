"""Rates and ratios of tools/bench/grpo_vs_trl.py, and what it says where TRL is missing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def grpo_rates(monkeypatch) -> ModuleType:
    """The scripts of tools/bench find each other because they lie side by side."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "bench")
    return importlib.import_module("grpo_rates")


def rounds_of(*seconds: float) -> list[dict[str, float]]:
    """1,200 tokens a round; a quarter of a step's time is decoding."""
    return [{"tokens": 1200, "whole step": s, "decoding": s / 4} for s in seconds]


def test_ratios_are_taken_round_by_round(grpo_rates):
    # 400, 300 and 200 tokens/s against 300, 100 and 200.
    ours, theirs = rounds_of(3, 4, 6), rounds_of(4, 12, 6)
    assert grpo_rates.rates(ours, "whole step") == [400, 300, 200]
    ratios = grpo_rates.ratios(ours, theirs, "whole step")
    assert ratios == pytest.approx([4 / 3, 3, 1])
    assert grpo_rates.spread(ratios) == pytest.approx((1, 4 / 3, 3))


def test_the_best_side_is_that_of_the_best_median(grpo_rates):
    # Medians of 4 and 5 seconds; the second one's best round is the shortest of all.
    assert grpo_rates.best({"1 x 2": rounds_of(4, 4, 9), "2 x 1": rounds_of(2, 5, 6)}) == "1 x 2"


def test_shares_add_up_to_the_whole_step(grpo_rates):
    assert grpo_rates.part_shares(rounds_of(2, 6), ["decoding"]) == [0.25, 0.75]


def test_without_trl_it_says_how_to_get_it(tmp_path):
    command = [sys.executable, ROOT / "tools/bench/grpo_vs_trl.py", "--peers", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "pip install --no-deps --target DIR trl==1.16" in done.stderr
