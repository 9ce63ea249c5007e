"""Round trips, short prompts, tags that survive, and directories that are of no use."""

from __future__ import annotations

import random

import pytest

from megatron_r1.data.templates import TAGS, render
from megatron_r1.data.tokenizer import load_tokenizer, train_tokenizer
from megatron_r1.errors import ConfigError, DataError

QUESTION = "State the final answer to the following arithmetic problem: 4 - 1 - 7 + 7 ="


def test_a_chain_sum_prompt_takes_26_tokens(tokenizer):
    # 8 tags and 7 texts between them; the opening sentences and the question's; 4 numbers, 3 signs
    # and the equals sign; ". Assistant:".   8 + 7 + 2 + 8 + 1 = 26
    assert len(tokenizer.encode(render("r1_zero", QUESTION))) == 26


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("407", ["4", "0", "7"]),
        ("4-1=-3", ["4", "-", "1", "=", "-", "3"]),
        ("4 - 1 =", ["4", " - ", "1", " ="]),
        ("12+30", ["1", "2", "+", "3", "0"]),
        ("<think>9</think>", ["<think>", "9", "</think>"]),
    ],
)
def test_digits_signs_and_tags_are_single_tokens(tokenizer, text, tokens):
    assert [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text)] == tokens


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  a",
        "a  ",
        "\n\t x\r\n",
        "naïve — 数学 👩‍🔬 \u0000 \ufeff",
        *TAGS,
        "< think>",
        "a<think> b",
    ],
)
def test_text_comes_back_as_it_went(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_as_it_went(tokenizer):
    rng = random.Random(0)
    for _ in range(300):
        points = [
            rng.choice([rng.randrange(128), rng.randrange(0xD800), 0x1F600]) for _ in range(20)
        ]
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_only_end_of_sequence_and_padding_are_skipped(tokenizer):
    ids = (*tokenizer.encode("<answer>3</answer>"), tokenizer.eos_id, tokenizer.pad_id)
    assert tokenizer.decode(ids) == "<answer>3</answer>"
    assert tokenizer.eos_id != tokenizer.pad_id


def test_encoding_adds_nothing_and_counts_agree(tokenizer):
    texts = ["", "5", render("r1_zero", QUESTION)]
    assert tokenizer.encode("") == ()
    assert tokenizer.lengths(texts) == [len(tokenizer.encode(text)) for text in texts]
    assert tokenizer.lengths([]) == []


def test_half_a_character_is_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_a_model_with_too_few_embeddings_is_refused(tokenizer):
    tokenizer.check_fits(tokenizer.vocab_size)
    assert tokenizer.vocab_size <= 512
    with pytest.raises(
        DataError, match=r"has 300 embeddings. Set model.vocab_size=.*data.tokenizer="
    ):
        tokenizer.check_fits(300)


def test_training_twice_gives_the_same_files(tmp_path):
    texts = ["one and two and three", "two and three and one", "<think>1 + 2</think>"] * 5
    for name in ("a", "b"):
        train_tokenizer(texts, vocab_size=300, directory=tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_recurring_sentence_needs_no_tokens_for_its_parts(tmp_path):
    # 256 bytes, 4 tags, end and padding leave 2 of 264: one merge, and the whole sentence.
    sentence = "a sentence of letters and spaces"
    trained = train_tokenizer([sentence] * 2, vocab_size=264, directory=tmp_path)
    assert trained.vocab_size == 264
    assert len(trained.encode(sentence)) == 1
    assert len(trained.encode(sentence + "!")) > 20


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="model.vocab_size = 261 has no room.*Set it to 262 or more"
    ):
        train_tokenizer(["x"], vocab_size=261, directory=tmp_path)


def test_a_missing_or_broken_directory_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such directory. Set data.tokenizer="):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(
        DataError, match=f"tokenizer {tmp_path} cannot be loaded: .*data.tokenizer="
    ):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_end_a_response_is_refused(tokenizer, tmp_path):
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(DataError, match="names no end-of-sequence token"):
        load_tokenizer(tmp_path)
