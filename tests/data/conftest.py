"""One small tokenizer, trained on the corpus that it will encode."""

from __future__ import annotations

import pytest

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.tokenizer import Tokenizer, train_tokenizer

ONE_DIGIT = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}


@pytest.fixture(scope="session")
def chain_sum_problems():
    return generate_problems("chain_sum", ONE_DIGIT, 1000)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, chain_sum_problems) -> Tokenizer:
    documents = write_corpus(chain_sum_problems, config=CorpusConfig(), seed=1)
    return train_tokenizer(
        [text for document in documents for text in document],
        vocab_size=512,
        directory=tmp_path_factory.mktemp("tokenizer"),
    )
