"""Accuracy: 1 where the final answer is right (arXiv:2501.12948v2, section 2.2)."""

from __future__ import annotations

from megatron_r1.config.reward import SandboxConfig
from megatron_r1.data.gym_tasks import GRADER_PREFIX, score_answer
from megatron_r1.errors import DataError
from megatron_r1.rewards.choices import is_choice
from megatron_r1.rewards.code import passes_tests
from megatron_r1.rewards.extract import extract_answer
from megatron_r1.rewards.math_answers import is_equivalent
from megatron_r1.types import Prompt, Rollout

_DEFAULT_SANDBOX = SandboxConfig()


def accuracy(
    prompt: Prompt, rollout: Rollout, *, config: SandboxConfig = _DEFAULT_SANDBOX
) -> tuple[float, str]:
    """1 or 0, by the prompt's own grader. A truncated response is judged by the same rule.

    Raises:
        DataError: the prompt names no known grader.
        ConfigError: the answer is code, and no sandbox can be had here.
        Exception: whatever a broken grader raises.
    """
    if prompt.grader == "code":
        passed, note = passes_tests(rollout.text, prompt.grader_data, config)
        return float(passed), f"{'right' if passed else 'wrong'}: {note}"
    answer, where = extract_answer(rollout.text)
    if answer is None:
        return 0.0, where
    is_right, note = _grade(prompt, answer)
    verdict = "right" if is_right else "wrong"
    return float(is_right), f"{verdict}: {answer[:60]!r} in the {where}{note and f' ({note})'}"


def _grade(prompt: Prompt, answer: str) -> tuple[bool, str]:
    if prompt.grader.startswith(GRADER_PREFIX):
        task = prompt.grader.removeprefix(GRADER_PREFIX)
        # Tasks give partial credit, up to 0.5 for a wrong answer: only a full score is right.
        score, note = score_answer(task, answer, prompt.grader_data)
        return score >= 1.0, note or f"{task} scores {score:g}"
    if prompt.grader == "math":
        return is_equivalent(prompt.answer, answer), ""
    if prompt.grader == "choice":
        return is_choice(prompt.answer, answer, prompt.grader_data.get("choices", ())), ""
    if prompt.grader == "exact":
        return answer.split() == prompt.answer.split(), ""
    raise DataError(
        f"prompt {prompt.id} asks for grader {prompt.grader!r}. Choose math, exact, choice, code "
        f"or {GRADER_PREFIX}<task>. For prompts that no rule can judge, leave accuracy out of "
        "their data set's weights in reward.mixes"
    )
