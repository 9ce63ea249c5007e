"""All steps over all files, in one pass: what is kept, what is dropped and why.

Duplicates are looked for last, among what every other step keeps, so that what is dropped as a
duplicate always has its twin in the output.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from megatron_r1 import __version__
from megatron_r1.config.curation import CurationConfig
from megatron_r1.config.data import BadLines
from megatron_r1.config.plain import as_plain
from megatron_r1.data.curation.decontaminate import Contamination
from megatron_r1.data.curation.difficulty import Difficulty
from megatron_r1.data.curation.exact import ExactDuplicates
from megatron_r1.data.curation.examples import Example, example_of
from megatron_r1.data.curation.near_duplicates import NearDuplicates
from megatron_r1.data.curation.report import CurationReport, StepCount
from megatron_r1.data.records import Line, file_name, line_id, read_lines
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.telemetry.files import replace_file, sha256_of


class Step(Protocol):
    """Looks at one example after the other, in order."""

    name: str

    def check(self, example: Example) -> tuple[Example, str]:
        """The example, with a verdict where the step has one, and why it goes; empty: it stays."""
        ...


def curate(inputs: Sequence[Path], output: Path, config: CurationConfig) -> CurationReport:
    """Read `inputs` in order and write `output` with three files beside it, all of them or none.

        train.jsonl            what is kept, each example with its lineage
        train.dropped.jsonl    step, file, line and reason of each example that is not
        train.rejected.jsonl   lines that are no example, as they stand (bad_lines=set_aside)
        train.manifest.json    files with their hashes, configuration, counts and statistics

    The same inputs and configuration give the same bytes.

    Raises:
        DataError: a file that is empty or cannot be read, a bad line, or nothing is kept.
        ConfigError: an output that is an input, or has another ending.
    """
    if output.suffix != ".jsonl":
        raise ConfigError(f"the output {output} must end in .jsonl")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise ConfigError(f"{output} is one of the inputs. Choose another output")
    names = Counter(file_name(path) for path in inputs)
    clashing = [path for path in inputs if names[file_name(path)] > 1]
    steps = steps_of(config)
    report = CurationReport(steps=[StepCount("bad line"), *(StepCount(s.name) for s in steps)])
    output.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        drafts = {
            name: stack.enter_context(replace_file(output.with_suffix(suffix)))
            for name, suffix in _SUFFIXES.items()
        }
        # Other keys may hold half of a surrogate pair. The backslash form of it is valid JSON.
        options = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace"}
        with (
            drafts["kept"].open(**options) as kept,
            drafts["dropped"].open(**options) as dropped,
            drafts["rejected"].open(**options) as rejected,
        ):
            files = _Files(kept, dropped, rejected)
            num_lines = {
                str(path): _curate_file(path, steps, report, files, config, clashing=clashing)
                for path in inputs
            }
        if not report.kept:
            raise DataError(f"nothing is kept for {output}:\n{report.describe()}")
        manifest = {
            "program": f"megatron-r1 {__version__}",
            "config": as_plain(config),
            "inputs": [
                {"path": path, "lines": lines, "sha256": sha256_of(Path(path))}
                for path, lines in num_lines.items()
            ],
            "output": {"path": str(output), "sha256": sha256_of(drafts["kept"])},
            **report.to_json(),
        }
        drafts["manifest"].write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return report


_SUFFIXES = {
    "manifest": ".manifest.json",
    "rejected": ".rejected.jsonl",
    "dropped": ".dropped.jsonl",
    "kept": ".jsonl",
}
"""They get their names from the last to the first: a manifest stands for files that are there."""


@dataclass(frozen=True)
class _Files:
    kept: IO[str]
    dropped: IO[str]
    rejected: IO[str]


def steps_of(config: CurationConfig) -> list[Step]:
    """The steps that the configuration turns on; those that read files read them now."""
    steps: list[Step] = []
    if config.difficulty.rollouts:
        steps.append(Difficulty(config.difficulty))
    if config.decontamination.files:
        steps.append(Contamination(config.decontamination))
    steps.append(ExactDuplicates())
    if config.near.threshold < 1:
        steps.append(NearDuplicates(config.near))
    return steps


def _curate_file(
    path: Path,
    steps: list[Step],
    report: CurationReport,
    files: _Files,
    config: CurationConfig,
    *,
    clashing: Collection[Path],
) -> int:
    """Take one file through all steps. Returns how many lines it has, blank ones left out.

    Args:
        clashing: files after which no line can be named.
    """
    num_lines = num_examples = 0
    ids: dict[str, int] = {}
    for line in read_lines(path):
        num_lines += 1
        example, error = _example_or_error(line)
        if example is not None and ids.setdefault(example.id, line.number) != line.number:
            error = f"id {example.id!r} is that of line {ids[example.id]}, too"
            example = None
        report.steps[0].count(line.where, error)
        if example is None:
            if config.bad_lines is BadLines.stop:
                raise DataError(
                    f"{line.fail(error)}. Mend it, or set bad lines aside with "
                    "stage.curation.bad_lines=set_aside (tools/curate.py --bad-lines set_aside)"
                )
            text = line.text or json.dumps(line.record, ensure_ascii=False, default=str)
            place = {"file": str(path), "line": line.number}
            _write(files.rejected, {**place, "error": error, "text": text})
            continue
        num_examples += 1
        if example.id == line_id(path, line.number) and path in clashing:
            raise DataError(
                f"{line.where} has no id, and would be called {example.id} like a line of another "
                "input of this name. Rename one of the files, or give their lines an id"
            )
        for step, count in zip(steps, report.steps[1:], strict=True):
            example, reason = step.check(example)
            count.count(line.where, reason)
            if reason:
                place = {"id": example.id, "file": str(path), "line": line.number}
                _write(files.dropped, {"step": step.name, **place, "reason": reason})
                break
        else:
            report.kept += 1
            report.statistics.add(example)
            _write(files.kept, example.to_record())
    if not num_lines:
        raise DataError(f"{path} is empty")
    if not num_examples:
        raise DataError(f"{path} holds no example: all of its {num_lines} lines are bad")
    return num_lines


def _example_or_error(line: Line) -> tuple[Example | None, str]:
    if line.error:
        return None, line.error
    try:
        return example_of(line), ""
    except ValueError as error:
        return None, str(error)


def _write(output: IO[str], record: dict[str, Any]) -> None:
    output.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
