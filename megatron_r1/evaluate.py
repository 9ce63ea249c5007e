"""`python -m megatron_r1.evaluate CHECKPOINT [overrides]`: pass@k and cons@k of a model of ours.

    python -m megatron_r1.evaluate runs/quickstart experiment=quickstart
    python -m megatron_r1.evaluate DIR evaluation=r1 evaluation.suites.aime.path=aime_2024.jsonl

CHECKPOINT is a run, one of its checkpoints, or a Hugging Face model; the model's shape comes from
there. Overrides are those of `megatron_r1.train`. Results are in <run.root>/<run.name>/eval/.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_r1 import signals
from megatron_r1.command import run_command
from megatron_r1.config.load import load_config, world_size_from_environment
from megatron_r1.config.pipeline import EvaluationStageConfig
from megatron_r1.errors import EXIT_DONE, ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate on this rank of the job. Returns the exit code."""
    signals.listen()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return EXIT_DONE
    is_main = os.environ.get("RANK", "0") == "0"
    return run_command(lambda: evaluate(arguments), speaks=is_main)


def evaluate(arguments: Sequence[str]) -> None:
    """Compose, check, sample and report.

    Raises:
        UserError: what the user has to mend.
    """
    sources = [argument for argument in arguments if "=" not in argument]
    if len(sources) != 1:
        raise ConfigError(
            f"expected one checkpoint before the overrides, got {' '.join(sources) or 'none'}: "
            "python -m megatron_r1.evaluate CHECKPOINT [group.key=value ...]"
        )
    source = Path(sources[0])
    config = load_config([argument for argument in arguments if argument != sources[0]])

    from megatron_r1.stages.evaluation import model_of, run_evaluation  # seconds to import
    from megatron_r1.stages.session import open_reader

    # What the overrides train has no say in it.
    config = dataclasses.replace(config, model=model_of(source), stage=EvaluationStageConfig())
    config.validate(world_size_from_environment())
    with open_reader(config) as session:
        run_evaluation(session, source)


if __name__ == "__main__":
    sys.exit(main())
