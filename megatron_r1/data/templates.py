"""The text around a question, and the tags around the parts of a response."""

from __future__ import annotations

from megatron_r1.errors import ConfigError

THINK, END_THINK, ANSWER, END_ANSWER = "<think>", "</think>", "<answer>", "</answer>"
TAGS = (THINK, END_THINK, ANSWER, END_ANSWER)

_R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {question}. Assistant:"
)
"""DeepSeek-R1 (arXiv:2501.12948v1) Table 1, word for word. The response carries all four tags."""

_TEMPLATES = {"r1_zero": _R1_ZERO, "plain": "{question}"}


def render(template_name: str, question: str) -> str:
    """The question inside a template: the text that the policy continues.

    Raises:
        ConfigError: no template has this name; the message lists those that exist.
    """
    if template_name not in _TEMPLATES:
        raise ConfigError(
            f"data.template = {template_name!r} is unknown. Choose one of {', '.join(_TEMPLATES)}"
        )
    return _TEMPLATES[template_name].replace("{question}", question)
