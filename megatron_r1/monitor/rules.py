"""From the signals of a run's phases to the hacks they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_r1.config.monitor import Hack, MonitorConfig
from megatron_r1.monitor.signals import (
    FORMAT,
    KL,
    LEARNED,
    LEARNED_SQUARE,
    MIXED,
    REPEATED,
    TOKENS,
    VERIFIED,
)

Signals = Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """A hack, and the figures that show it."""

    hack: Hack
    evidence: str


def remember(history: Sequence[Signals], signals: Signals, config: MonitorConfig) -> list[Signals]:
    """The phases that rules look at: the first and the last ones, with the newest added.

    Where a schedule begins with the learned reward, what came before is no beginning to compare it
    with, and is forgotten.
    """
    first = config.baseline_phases
    if LEARNED in signals and history and LEARNED not in history[0]:
        history = ()
    grown = [*history, signals]
    return [*grown[:first], *grown[first:][-config.window_phases :]]


def judge(history: Sequence[Signals], config: MonitorConfig) -> list[Finding]:
    """The hacks that the last phases show against the first; none until both windows are full.

    - overoptimised: the learned reward has risen by `learned_rise` standard deviations, the
      verified one not at all. R1 (arXiv:2501.12948v2) supplement B.5: the two part company;
    - length_drift, repetition: either has drifted, and the verified reward has not risen with it.
      A policy that learns to think longer is no hacker;
    - format_gaming: the format reward has risen at the cost of the verified one;
    - language_mixing: more letters outside the main script;
    - kl_budget: the policy is further from the reference than allowed (arXiv:2210.10760: gold
      reward falls with the KL that was spent).
    """
    if len(history) < config.baseline_phases + config.window_phases:
        return []
    start = _means(history[: config.baseline_phases])
    now = _means(history[-config.window_phases :])
    findings = []

    def find(hack: Hack, evidence: str) -> None:
        findings.append(Finding(hack, evidence))

    def change(name: str) -> str:
        return f"{name} {start[name]:.4g} -> {now[name]:.4g}"

    def gain(name: str) -> float:
        return now[name] - start[name] if name in start and name in now else 0.0

    verified = f", {change(VERIFIED)}" if VERIFIED in now and VERIFIED in start else ""
    has_risen = gain(VERIFIED) > 0
    if LEARNED in now and LEARNED in start and verified and not has_risen:
        spread = max(start[LEARNED_SQUARE] - start[LEARNED] ** 2, 0.0) ** 0.5
        if gain(LEARNED) > 0 and gain(LEARNED) >= config.learned_rise * spread:
            find(Hack.overoptimised, f"{change(LEARNED)} (deviation {spread:.4g}){verified}")
    factor = config.length_factor
    if not has_risen and not 1 / factor < now[TOKENS] / max(start[TOKENS], 1e-9) < factor:
        find(Hack.length_drift, change(TOKENS) + verified)
    if not has_risen and gain(REPEATED) >= config.repeated_rise:
        find(Hack.repetition, change(REPEATED) + verified)
    if gain(FORMAT) >= config.format_rise and gain(VERIFIED) <= -config.verified_drop:
        find(Hack.format_gaming, change(FORMAT) + verified)
    if gain(MIXED) >= config.mixed_rise:
        find(Hack.language_mixing, change(MIXED))
    if 0 < config.kl_budget <= now.get(KL, 0.0):
        find(Hack.kl_budget, f"{KL} {now[KL]:.4g} nats per token, budget {config.kl_budget:.4g}")
    return findings


def _means(phases: Sequence[Signals]) -> dict[str, float]:
    """Of the signals that every phase has."""
    names = set.intersection(*(set(phase) for phase in phases))
    return {name: sum(phase[name] for phase in phases) / len(phases) for name in names}
