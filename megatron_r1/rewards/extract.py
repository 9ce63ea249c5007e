"""The final answer inside a response."""

from __future__ import annotations

import re

from megatron_r1.data.templates import ANSWER, END_ANSWER

_BOX = "\\boxed{"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED_BOX = re.compile(r"\\boxed +([^\s{}$\\.,;]+)")


def extract_answer(text: str) -> tuple[str | None, str]:
    r"""The last complete ``\boxed{...}``, else the last ``<answer>...</answer>``; stripped.

    Returns:
        The answer and where it was found, or None and why there is none. An empty box or block is
        the answer "".
    """
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed, "last box"
    start = text.rfind(ANSWER, 0, max(text.rfind(END_ANSWER), 0))
    if start < 0:
        return None, "no box and no complete <answer> block"
    start += len(ANSWER)
    return text[start : text.index(END_ANSWER, start)].strip(), "last <answer> block"


def extract_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` whose braces balance; of nested boxes the innermost.

    ``\fbox{...}`` is a box too; ``\boxed 4``, a word without braces, counts where no other does.
    """
    text = text.replace("\\fbox{", _BOX)
    closing = _closing_braces(text)
    start = text.rfind(_BOX)
    while start >= 0:
        content_start = start + len(_BOX)
        if content_start in closing:
            return text[content_start : closing[content_start]].strip()
        start = text.rfind(_BOX, 0, start)
    unbraced = _UNBRACED_BOX.findall(text)
    return unbraced[-1] if unbraced else None


def _closing_braces(text: str) -> dict[int, int]:
    r"""Where each brace that is opened before an index closes; ``\{`` and ``\}`` are no braces."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing
