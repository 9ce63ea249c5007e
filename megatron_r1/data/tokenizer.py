"""One tokenizer for training, rollouts and templates: load any directory, or train a small one.

Encoding adds nothing. A template that wants a beginning-of-sequence token writes its text, since
the text of a special token becomes its id. Decoding leaves out the end-of-sequence and padding
tokens only, so that tags such as ``<think>`` reach the graders.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_r1.data.templates import TAGS
from megatron_r1.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import PreTokenizer

EOS, PAD = "<|endoftext|>", "<|pad|>"
NUM_BYTES = 256
_SIGN = r"[0-9]| ?[-+*/=^×÷] ?"
_WORD = _SIGN + r"| ?(?:[\u4e00-\u9fff]|[A-Za-z]+|[^\w\s])(?: (?=[0-9]))?"
"""A word has the space before it, and the one after it only where a digit follows: digits never
have one."""


@dataclass(frozen=True)
class Tokenizer:
    """A Hugging Face tokenizer with one meaning for each operation."""

    path: str
    """The directory it was loaded from."""
    eos_id: int
    """Ends a response; rollouts stop at it."""
    pad_id: int
    """`eos_id` where the directory names no padding token."""
    vocab_size: int
    """Highest id + 1, which may exceed the number of tokens."""
    _backend: Backend = field(repr=False, compare=False)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, counted in one batch."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without end-of-sequence and padding.

        Bytes that are no complete UTF-8 character, as a truncated response may end in, become
            U+FFFD.
        """
        skipped = (self.eos_id, self.pad_id)
        kept = [token_id for token_id in ids if token_id not in skipped]
        return self._backend.decode(kept, skip_special_tokens=False)

    def has_vocabulary_of(self, other: Tokenizer) -> bool:
        """Whether both give every id to the same token."""
        return self._backend.get_vocab(True) == other._backend.get_vocab(True)

    def check_fits(self, model_vocab_size: int) -> None:
        """Every id must have a row in the model's embedding.

        Raises:
            DataError: with both sizes and the settings that change them.
        """
        if self.vocab_size > model_vocab_size:
            raise DataError(
                f"tokenizer {self.path} has ids up to {self.vocab_size - 1}, and the model has "
                f"{model_vocab_size} embeddings. Set model.vocab_size={self.vocab_size} or more, "
                "or data.tokenizer= to the tokenizer that belongs to the model"
            )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a Hugging Face tokenizer directory, from disk only.

    Raises:
        DataError: the directory is missing, cannot be read, or names no end-of-sequence token.
    """
    way_out = "Set data.tokenizer= to a directory with tokenizer.json and tokenizer_config.json"
    if not Path(path).is_dir():
        raise DataError(f"tokenizer {path}: no such directory. {way_out}")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the Rust parser raises the bare class
        first_line = str(error).strip().split("\n")[0]
        raise DataError(f"tokenizer {path} cannot be loaded: {first_line}. {way_out}") from error
    if not loaded.is_fast:
        raise DataError(f"tokenizer {path} has no tokenizer.json. {way_out}")
    if loaded.eos_token_id is None:
        raise DataError(
            f"tokenizer {path} names no end-of-sequence token, and rollouts could never stop. "
            "Add eos_token to its tokenizer_config.json"
        )
    backend = loaded.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(
        path=str(path),
        eos_id=loaded.eos_token_id,
        pad_id=loaded.eos_token_id if loaded.pad_token_id is None else loaded.pad_token_id,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        _backend=backend,
    )


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    directory: str | Path,
    special_tokens: Sequence[str] = TAGS,
    split_words: bool = False,
) -> Tokenizer:
    """Train byte-level BPE on `texts`, save it as a Hugging Face directory, and load it back.

    A piece of text between two digits, signs or special tokens is the unit of merging, spaces
    included, so a token may span many words (SuperBPE, arXiv:2503.13423). In place of that paper's
    second stage, a piece that recurs gets a token at once, without tokens for the merges on the way
    to it: that is how the constant paragraph of a template fits into a vocabulary of 512. Digits
    are single tokens; a sign keeps the spaces around it and nothing else.

    Args:
        texts: prompts and responses, each a text of its own, so that no token spans both.
        vocab_size: upper limit for the number of tokens; ids are 0 to that number - 1.
        special_tokens: tokens that decode to themselves, besides end-of-sequence and padding.
        split_words: no token spans two words, and a Chinese character is a word. For texts whose
            phrases are put together anew, where a token of a whole phrase hides what it is made of.
    Raises:
        ConfigError: the vocabulary has no room for 256 bytes and the special tokens.
    """
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    num_free = vocab_size - NUM_BYTES - len(special_tokens) - len((EOS, PAD))
    if num_free < 0:
        raise ConfigError(
            f"model.vocab_size = {vocab_size} has no room for {NUM_BYTES} bytes, "
            f"{len(special_tokens)} tags, end of sequence and padding. "
            f"Set it to {vocab_size - num_free} or more"
        )
    pre_tokenizer = _pre_tokenizer(_WORD if split_words else _SIGN)
    segments = _split_at(special_tokens, texts)
    limit = num_free if split_words else num_free // 2
    whole_pieces = _recurring_pieces(segments, pre_tokenizer, limit=limit)
    vocab, merges = _train_bpe(segments, pre_tokenizer, num_free + NUM_BYTES - len(whole_pieces))
    for piece in whole_pieces:
        vocab.setdefault(piece, len(vocab))

    # ignore_merges: a piece that the vocabulary holds as a whole is found there first.
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    # Not `special`: readers that skip special tokens when they decode must still see the tags.
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in special_tokens])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(str(directory))
    return load_tokenizer(directory)


def _pre_tokenizer(pattern: str) -> PreTokenizer:
    """Cuts out what matches, and maps bytes to printable characters."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    return Sequence(
        [
            Split(Regex(pattern), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _split_at(special_tokens: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The stretches of text between special tokens."""
    if not special_tokens:
        return [text for text in texts if text]
    boundary = re.compile("|".join(map(re.escape, special_tokens)))
    return [segment for text in texts for segment in boundary.split(text) if segment]


def _recurring_pieces(
    segments: Sequence[str], pre_tokenizer: PreTokenizer, *, limit: int
) -> list[str]:
    """Up to `limit` pieces of several bytes that occur more than once, the costliest first."""
    counts: Counter[str] = Counter()
    for segment, count in Counter(segments).items():
        for piece, _ in pre_tokenizer.pre_tokenize_str(segment):
            counts[piece] += count
    recurring = [piece for piece, count in counts.items() if count > 1 and len(piece) > 1]
    return sorted(recurring, key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))[:limit]


def _train_bpe(
    segments: Sequence[str], pre_tokenizer: PreTokenizer, vocab_size: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of plain byte-level BPE."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers
    from tokenizers.pre_tokenizers import ByteLevel

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(segments, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
