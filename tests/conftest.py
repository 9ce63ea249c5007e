"""What several tests share: a job of one rank in the test's own process, and a small tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.tokenizer import Tokenizer, train_tokenizer

# Processes that tests start import from this checkout too, whatever else is installed.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Triton asks once, when it is imported, by whatever test comes first.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ONE_DIGIT = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}


class OneRank:
    """Megatron-Core on a single process; policies of one layout share its process groups."""

    def __init__(self) -> None:
        from megatron_r1.platform.host import prepare, start_process_group

        self.host = prepare()
        start_process_group(self.host, timeout_minutes=5)
        self._layout = None

    def policy(self, config, *, seed: int = 7, **more):
        from megatron_r1.models.policy import Policy

        layout = self.layout(config.parallel)
        return Policy(config.model, layout, config.precision, self.host, seed=seed, **more)

    def layout(self, parallel):
        from torch.distributed.distributed_c10d import _world

        from megatron_r1.parallel.layout import enter_layout

        known = self._layout
        # What is tested may have entered a layout of its own, which ended this one.
        is_alive = known is not None and known.tp.group in _world.pg_map
        if not is_alive or known.config != parallel:
            self._layout = enter_layout(parallel, seed=1)
        return self._layout


@pytest.fixture(scope="session")
def one_rank() -> OneRank:
    return OneRank()


@pytest.fixture(scope="session")
def chain_sum_problems():
    return generate_problems("chain_sum", ONE_DIGIT, 1000)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, chain_sum_problems) -> Tokenizer:
    """Trained on the corpus that it will encode."""
    documents = write_corpus(chain_sum_problems, config=CorpusConfig(), seed=1)
    return train_tokenizer(
        [text for document in documents for text in document],
        vocab_size=512,
        directory=tmp_path_factory.mktemp("tokenizer"),
    )
