"""The files of the tiny world: the same from a seed, apart from each other, labelled rightly."""

from __future__ import annotations

import json

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.tiny_world import TinyWorldConfig
from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.data.preferences import read_preferences
from megatron_r1.data.safety_labels import read_labelled
from megatron_r1.data.samples import read_samples
from megatron_r1.data.tiny_world.requests import all_requests, parse_request
from megatron_r1.data.tiny_world.sums import all_sums, parse_sum
from megatron_r1.data.tiny_world.words import CHINESE, ENGLISH
from megatron_r1.data.tiny_world.write import write_world
from megatron_r1.data.tokenizer import train_tokenizer
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.extract import extract_answer
from megatron_r1.rewards.language import count_words
from megatron_r1.rewards.reasoning import final_part_of, reasoning_of

SMALL = {
    "num_documents": 600,
    "num_general": 200,
    "num_pairs": 100,
    "num_labelled": 100,
    "num_heldout": 40,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    return directory, write_world(directory, TinyWorldConfig(**SMALL))


def records(world, name: str) -> list[dict]:
    return [json.loads(line) for line in (world[0] / name).read_text().splitlines()]


def contents(world, name: str) -> set[str]:
    """What is asked, apart from the language."""
    found = set()
    for record in records(world, name):
        question = record.get("question") or record["prompt"]
        asked = parse_sum(question)
        found.add(asked.expression if asked else parse_request(question).content)
    return found


def test_a_seed_makes_one_world(world, tmp_path):
    directory, manifest = world
    assert write_world(tmp_path / "again", TinyWorldConfig(**SMALL)) == manifest
    other = write_world(tmp_path / "other", TinyWorldConfig(**SMALL, seed=2))
    assert other["files"]["corpus.jsonl"] != manifest["files"]["corpus.jsonl"]
    # A file that somebody has changed is written anew; whole ones are left alone.
    before = (directory / "pairs.jsonl").stat().st_mtime_ns
    write_world(directory, TinyWorldConfig(**SMALL))
    assert (directory / "pairs.jsonl").stat().st_mtime_ns == before
    (tmp_path / "again" / "pairs.jsonl").write_text("{}\n")
    write_world(tmp_path / "again", TinyWorldConfig(**SMALL))
    assert (tmp_path / "again" / "pairs.jsonl").read_bytes() == (
        directory / "pairs.jsonl"
    ).read_bytes()


def test_corpus_training_and_measurement_share_no_content(world):
    corpus = contents(world, "corpus.jsonl")
    training = set().union(
        *(
            contents(world, f"{name}.jsonl")
            for name in ("reasoning", "scenarios", "general_sft", "pairs", "labelled")
        )
    )
    heldout = set().union(
        *(
            contents(world, f"{name}.jsonl")
            for name in (
                "heldout_reasoning",
                "heldout_general",
                "heldout_helpfulness",
                "heldout_safety",
                "pairs_heldout",
                "labelled_heldout",
            )
        )
    )
    assert min(map(len, (corpus, training, heldout))) > 40
    assert not corpus & training and not corpus & heldout and not training & heldout


def test_questions_are_read_back_and_answers_are_right(world):
    # 7 x 14 x 14 sums in two languages; 3 x 80 + 24 + 8 x 80 requests in two languages
    assert len(all_sums()) == 2_744 and len(all_requests()) == 1_808
    assert len({asked.question for asked in all_sums()}) == 2_744
    assert len({request.question for request in all_requests()}) == 1_808
    assert parse_sum("what is 4 - 9 + 2?").total == -3
    assert parse_sum("4 - 9 + 2 是多少？").tongue is CHINESE
    assert parse_sum("what is 4 - 9?") is None
    for problem in read_jsonl(world[0] / "reasoning.jsonl"):
        assert eval(parse_sum(problem.question).expression) == int(problem.answer)
        assert problem.dataset == "reasoning"
    scenarios = read_jsonl(world[0] / "scenarios.jsonl")
    for problem in scenarios:
        request = parse_request(problem.question)
        wanted = "harmlessness" if request and request.is_harmful else "helpfulness"
        assert problem.dataset == (wanted if request else "reasoning")
        assert problem.language == (request or parse_sum(problem.question)).tongue.code
    assert {p.dataset for p in scenarios} == {"reasoning", "helpfulness", "harmlessness"}
    assert parse_request("say red cat in Chinese").answer == "红猫"
    assert parse_request("红猫做什么？").answer == "红猫睡"


def test_preferences_and_labels_are_right(world):
    for pair in read_preferences(world[0] / "pairs.jsonl"):
        request = parse_request(pair.prompt)
        offer = request.tongue.offer
        assert not request.is_harmful
        assert request.answer in final_part_of(pair.chosen)
        chosen, rejected = pair.chosen.count(offer), pair.rejected.count(offer)
        if pair.margin == 1.0:  # both right: one offer over none, or over several in any language
            assert request.answer in final_part_of(pair.rejected)
            assert chosen == 1 and rejected != 1 or len(pair.rejected) > len(pair.chosen)
        else:
            assert request.answer not in final_part_of(pair.rejected)
            assert chosen <= rejected <= 1
    labelled = read_labelled(world[0] / "labelled.jsonl")
    for case in labelled:
        request = parse_request(case.prompt)
        assert case.safe == (not request.is_harmful or request.tongue.refusal in case.response)
    assert 20 < sum(case.safe for case in labelled) < 80


def test_the_corpus_is_as_untidy_as_it_says(tmp_path):
    config = TinyWorldConfig(
        **{**SMALL, "num_documents": 2_000},
        malformed_frac=0.0,
        request_frac=0.0,
        careful_frac=1.0,
        slip_frac=0.0,
    )
    write_world(tmp_path, config)
    own = other = right = boxed = 0
    for sample in read_samples(tmp_path / "corpus.jsonl"):
        asked = parse_sum(sample.prompt)
        here, elsewhere = count_words(reasoning_of(sample.response), asked.tongue.code)
        own, other = own + here, other + len(elsewhere)
        right += int(extract_answer(sample.response)[0]) == asked.total
        boxed += "boxed" in sample.response
    # Shares 0.35, 0.1 and 0.4 (and strays right by chance), over 2,000 sums or 4,000 steps.
    assert abs(other / (own + other) - 0.35) < 0.03
    assert abs(boxed / 2_000 - 0.1) < 0.02
    assert 0.37 < right / 2_000 < 0.5


def test_a_token_holds_one_word(world, tmp_path):
    samples = read_samples(world[0] / "corpus.jsonl")
    texts = [text for sample in samples for text in (sample.prompt, sample.response)]
    tokenizer = train_tokenizer(texts, vocab_size=512, directory=tmp_path, split_words=True)
    for text in ("7| take |3| makes |4|.", "the| red| cat", "红|猫|做|什|么|？"):
        words = text.split("|")
        assert [tokenizer.decode([i]) for i in tokenizer.encode("".join(words))] == words


def test_a_base_learns_from_a_file_whatever_the_prompts_are():
    own = ["stage=tiny_base", "data=jsonl", "data.path=sums.jsonl"]
    load_config([*own, "stage.documents=corpus.jsonl"]).validate(world_size=1)
    with pytest.raises(ConfigError, match="written for data=chain_sum"):
        load_config(own).validate(world_size=1)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match=r"wrong_frac must be in \[0, 1\], got 2"):
        TinyWorldConfig(wrong_frac=2)
    with pytest.raises(ConfigError, match="num_pairs must be >= 1, got 0"):
        TinyWorldConfig(num_pairs=0)


def test_both_languages_say_as_much():
    for name, value in vars(ENGLISH).items():
        if isinstance(value, tuple):
            assert len(value) == len(getattr(CHINESE, name)), name
