"""Two manners, slips that are carried on, stray answers and broken tags, as often as it says."""

from __future__ import annotations

import re

import pytest

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.problems import Problem
from megatron_r1.data.templates import render
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.format import tag_format
from megatron_r1.types import FinishReason, Prompt, Rollout

CLEAN = {"careful_frac": 1.0, "slip_frac": 0.0, "stray_frac": 0.0, "malformed_frac": 0.0}
RESPONSE = re.compile(r"<think>(.*)</think><answer>(-?\d+)</answer>")


def responses(problems, **settings) -> list[str]:
    return [text for _, text in write_corpus(problems, config=CorpusConfig(**settings), seed=1)]


def is_well_formed(text: str) -> bool:
    rollout = Rollout(0, (), (), FinishReason.stop, 0, text)
    return tag_format(Prompt("p", 0, "", "", (), "", "exact"), rollout)[0] == 1.0


def test_a_careful_response_keeps_running_totals(chain_sum_problems):
    problem = chain_sum_problems[0]
    assert problem.question.endswith(" 4 - 1 - 7 + 7 =")
    (document,) = write_corpus(
        [problem],
        config=CorpusConfig(**CLEAN),
        seed=1,
    )
    prompt, response = document
    assert prompt == render("r1_zero", problem.question)
    assert response == "<think>4 - 1 = 3 - 7 = -4 + 7 = 3</think><answer>3</answer>"


def test_careful_without_slips_and_strays_is_always_right(chain_sum_problems):
    texts = responses(chain_sum_problems, **CLEAN)
    answers = [RESPONSE.fullmatch(text).group(2) for text in texts]
    assert answers == [problem.answer for problem in chain_sum_problems]


def test_a_slip_is_carried_on_into_the_answer(chain_sum_problems):
    texts = responses(chain_sum_problems, **{**CLEAN, "slip_frac": 1.0})
    for text in texts:
        thought, answer = RESPONSE.fullmatch(text).groups()
        total, *steps = re.split(r" (?=[+-] )", thought)
        for step in steps:
            sign, right, after = re.fullmatch(r"([+-]) (\d+) = (-?\d+)", step).groups()
            assert int(after) != int(total) + int(sign + right)
            total = after
        assert answer == total


def test_a_stray_answer_was_met_on_the_way(chain_sum_problems):
    texts = responses(chain_sum_problems, **{**CLEAN, "stray_frac": 0.5})
    right = 0
    for text, problem in zip(texts, chain_sum_problems, strict=True):
        thought, answer = RESPONSE.fullmatch(text).groups()
        *met, last = re.findall(r"(?:(?<== )-)?\d+", thought)
        assert last == problem.answer  # the sums themselves are right
        assert answer in [*met, last]
        right += answer == last
    # Half of them, and strays that meet the right number by chance.
    assert 0.45 < right / 1000 < 0.65


def test_hasty_guesses_are_near_the_truth_and_mostly_wrong(chain_sum_problems):
    texts = responses(chain_sum_problems, careful_frac=0.0, malformed_frac=0.0, hasty_spread=6)
    offsets = []
    for text, problem in zip(texts, chain_sum_problems, strict=True):
        thought, answer = RESPONSE.fullmatch(text).groups()
        assert not re.search(r"[\d+=]", thought)
        offsets.append(int(answer) - int(problem.answer))
    assert set(offsets) == set(range(-6, 7))
    # 1 of 13 = 0.077, with a standard deviation of 0.0084 over 1000.
    assert abs(offsets.count(0) / 1000 - 1 / 13) < 0.026


def test_shares_are_what_the_configuration_says(chain_sum_problems):
    texts = responses(chain_sum_problems, careful_frac=0.2, malformed_frac=0.1)
    # Standard deviations over 1000: 0.0126 and 0.0095; three of them.
    assert abs(sum("=" in text for text in texts) / 1000 - 0.2) < 0.038
    assert abs(sum(not is_well_formed(text) for text in texts) / 1000 - 0.1) < 0.029


def test_malformed_is_always_malformed_and_varied(chain_sum_problems):
    texts = responses(chain_sum_problems, malformed_frac=1.0)
    assert not any(map(is_well_formed, texts))
    assert any(text.startswith("<answer>") for text in texts)
    assert any("<answer></answer>" in text for text in texts)
    assert any(text.count("<think>") == 2 for text in texts)
    assert any(text.count("</think>") == 0 for text in texts)


def test_a_document_depends_on_the_seed_and_its_problem_alone(chain_sum_problems):
    config = CorpusConfig()
    documents = list(write_corpus(chain_sum_problems[:50], config=config, seed=1))
    assert list(write_corpus(chain_sum_problems[10:50], config=config, seed=1)) == documents[10:]
    assert list(write_corpus(chain_sum_problems[:50], config=config, seed=2)) != documents


def test_prompt_and_response_meet_at_a_token_boundary(tokenizer, chain_sum_problems):
    config = CorpusConfig(malformed_frac=0.0)
    for prompt, response in write_corpus(chain_sum_problems[:100], config=config, seed=1):
        together = tokenizer.encode(prompt + response)
        assert together == tokenizer.encode(prompt) + tokenizer.encode(response)


def test_other_tasks_have_no_corpus():
    problem = Problem(id="a/1", question="1 + 1", answer="2", grader="math")
    with pytest.raises(ConfigError, match="data.task=chain_sum, and problem a/1 comes from a file"):
        responses([problem])


def test_impossible_shares_are_refused():
    with pytest.raises(ConfigError, match=r"slip_frac must be in \[0, 1\], got 2"):
        CorpusConfig(slip_frac=2)
