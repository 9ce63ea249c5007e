"""The reward-hacking monitor in the loop: what it saw, as metrics, and the stop rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_r1.config.monitor import Hack, MonitorConfig
from megatron_r1.errors import UserError
from megatron_r1.monitor.rules import Finding, judge, remember
from megatron_r1.monitor.signals import KL, LEARNED_SQUARE, reward_signals, style_signals
from megatron_r1.parallel.exchange import sum_pairs
from megatron_r1.parallel.layout import Axis
from megatron_r1.types import ScoredGroup

Signals = Mapping[str, float]


class RewardHackError(UserError):
    """The stop rule ended a run. The checkpoint holds the policy as it was found."""


def observe(
    history: Sequence[Signals],
    sampled: Sequence[ScoredGroup],
    heldout: Sequence[ScoredGroup],
    kl_ref: float | None,
    config: MonitorConfig,
    samplers: Axis,
) -> tuple[list[Signals], list[Finding]]:
    """Add a phase to the history and judge it; every rank comes to the same findings.

    Args:
        heldout: rollouts of held-out prompts; without any, rewards are compared on `sampled`.
        kl_ref: nats per token, as the last update measured it.
    """
    pairs = style_signals(sampled, config)
    pairs |= reward_signals(heldout if config.heldout_prompts else sampled, config)
    signals = sum_pairs(pairs, samplers)
    if kl_ref is not None:
        signals[KL] = kl_ref
    history = remember(history, signals, config)
    return history, judge(history, config)


def monitor_metrics(signals: Signals, findings: Sequence[Finding]) -> dict[str, float]:
    """``monitor/<signal>``, and 1 or 0 in ``monitor/alarm_<hack>`` for each hack."""
    named = {finding.hack for finding in findings}
    metrics = {
        f"monitor/{name}": value for name, value in signals.items() if name != LEARNED_SQUARE
    }
    metrics |= {f"monitor/alarm_{hack.value}": float(hack in named) for hack in Hack}
    return metrics | {"monitor/alarms": float(len(named))}


def stop_message(findings: Sequence[Finding], config: MonitorConfig, step: int) -> str | None:
    """Why the run must end at `step`; None to go on."""
    fatal = [finding for finding in findings if finding.hack in config.stop_on]
    if not fatal:
        return None
    seen = "; ".join(f"{finding.hack.value}: {finding.evidence}" for finding in fatal)
    return (
        f"reward hacking after step {step}: {seen}. The checkpoint of that step is saved. Mend the "
        "reward or go back to an earlier checkpoint, or take these hacks out of monitor.stop_on to "
        "go on"
    )
