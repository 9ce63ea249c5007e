"""The prompts of a run: which problems, in which order; rendered when they are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from megatron_r1.config.data import BadLines, DataConfig, PromptSourceKind
from megatron_r1.data.epochs import item_of_draw
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.data.problems import (
    Problem,
    Splits,
    remove_duplicates,
    split_by_hash,
    split_corpus,
)
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import DataError
from megatron_r1.types import Prompt

_FIRST_LINES = 1000


class PromptSource:
    """Endless prompts from `train`, in an order that depends on the seed and the epoch alone.

    `train`, `heldout` and `corpus` are disjoint by question. `dropped` says of which problems and
    lines there is no prompt: reason -> how many.
    """

    def __init__(
        self,
        splits: Splits,
        *,
        config: DataConfig,
        tokenizer: Tokenizer,
        seed: int,
        dropped: Mapping[str, int],
    ) -> None:
        self.train = splits.train
        self.corpus = splits.corpus
        self.heldout = splits.heldout_side[: config.heldout_problems]
        self.dropped = {reason: count for reason, count in dropped.items() if count}
        self._config = config
        self._tokenizer = tokenizer
        self._seed = seed
        self._num_draws = 0
        self._early = splits.train
        self._all_from_step = 0

    def hold_back(self, datasets: Collection[str], *, until_step: int) -> None:
        """Draw no prompt of these data sets before so many updates.

        Raises:
            DataError: there is no prompt of them, or there are no others.
        """
        early = tuple(problem for problem in self.train if problem.dataset not in datasets)
        if not early or len(early) == len(self.train):
            raise DataError(
                f"{len(self.train) - len(early)} of {len(self.train)} prompts have one of the data "
                f"sets {', '.join(sorted(datasets))}, and both those and others are needed: a line "
                'of data.path names its own with "dataset"'
            )
        self._early, self._all_from_step = early, until_step

    def take(self, n: int, *, step: int = 0) -> list[Prompt]:
        """The next n prompts after `step` updates; `Prompt.draw` goes on from call to call."""
        draws = range(self._num_draws, self._num_draws + n)
        self._num_draws += n
        pool = self.train if step >= self._all_from_step else self._early
        return [self._to_prompt(self._drawn(draw, pool), draw) for draw in draws]

    def ahead(self, n: int, *, step: int = 0) -> list[Prompt]:
        """What the next `take` will return, after `step` updates."""
        before = self._num_draws
        prompts = self.take(n, step=step)
        self._num_draws = before
        return prompts

    def heldout_prompts(self, n: int | None = None) -> list[Prompt]:
        """The first n held-out problems (None: all), with draws 0 to n - 1.

        Raises:
            DataError: fewer are held out.
        """
        if n is not None and n > len(self.heldout):
            raise DataError(
                f"the evaluation asks for {n} held-out problems, and data.heldout_problems = "
                f"{len(self.heldout)}. Raise it, or lower the evaluation's num_problems"
            )
        return [self._to_prompt(problem, draw) for draw, problem in enumerate(self.heldout[:n])]

    @property
    def num_draws(self) -> int:
        """Prompts taken so far: all that `seek` needs to go on from here in another process."""
        return self._num_draws

    def seek(self, num_draws: int) -> None:
        self._num_draws = num_draws

    def _drawn(self, draw: int, pool: Sequence[Problem]) -> Problem:
        if not self._config.shuffle:
            return pool[draw % len(pool)]
        return pool[item_of_draw(draw, len(pool), self._seed)]

    def _to_prompt(self, problem: Problem, draw: int) -> Prompt:
        text = render(self._config.template, problem.question)
        return Prompt(
            id=problem.id,
            draw=draw,
            question=problem.question,
            text=text,
            token_ids=self._tokenizer.encode(text),
            answer=problem.answer,
            grader=problem.grader,
            grader_data=problem.grader_data,
            dataset=problem.dataset,
            language=problem.language,
        )


def check_source(config: DataConfig) -> None:
    """Find in a second what is wrong with the source's names and first lines.

    `open_prompts` reads the rest, and needs a tokenizer; a model may be in training until then.

    Raises:
        ConfigError: unknown task, option or template.
        DataError: a file that cannot be read, or an unusable line among its first.
    """
    render(config.template, "")
    if config.source is PromptSourceKind.reasoning_gym:
        generate_problems(config.task, config.task_options, 1)
        return
    for path in (config.path, config.heldout_path):
        if path is not None:
            read_jsonl(path, max_lines=_FIRST_LINES, bad_lines=_kept_apart(config))


def open_prompts(config: DataConfig, tokenizer: Tokenizer, *, seed: int) -> PromptSource:
    """Load or generate the problems, drop duplicates and long ones, and split the rest.

    Raises:
        ConfigError: unknown task, option or template.
        DataError: an unusable file, every prompt too long, or too few problems for a split.
    """
    dropped: Counter[str] = Counter()
    if config.source is PromptSourceKind.jsonl:
        kept = _of_file(str(config.path), config, tokenizer, dropped)
    else:
        # Of a generator, duplicates are the rule.
        drawn = generate_problems(config.task, config.task_options, config.num_problems)
        kept = _drop_long(remove_duplicates(drawn), config, tokenizer, dropped)

    if config.source is PromptSourceKind.jsonl and config.heldout_path is not None:
        heldout = _of_file(config.heldout_path, config, tokenizer, dropped)
        splits = _split_with_file(kept, heldout, config.corpus_frac)
        shared = len(kept) - len(splits.train) - len(splits.corpus)
        dropped[f"ask what {config.heldout_path} holds out"] += shared
    else:
        splits = split_by_hash(kept, corpus_frac=config.corpus_frac)
    _check_sizes(splits, config)
    return PromptSource(splits, config=config, tokenizer=tokenizer, seed=seed, dropped=dropped)


def open_corpus(config: DataConfig) -> tuple[Problem, ...]:
    """The problems that only the synthetic corpus may use; `open_prompts` never draws them."""
    problems = generate_problems(config.task, config.task_options, config.num_problems)
    splits = split_by_hash(remove_duplicates(problems), corpus_frac=config.corpus_frac)
    _check_sizes(splits, config)
    if not splits.corpus:
        raise DataError(
            f"no problem is set aside for the synthetic corpus: data.corpus_frac = "
            f"{config.corpus_frac} of data.num_problems = {config.num_problems}. Raise one of them"
        )
    return splits.corpus


def _of_file(
    path: str, config: DataConfig, tokenizer: Tokenizer, dropped: Counter[str]
) -> list[Problem]:
    """The distinct problems of a file whose prompts fit; `dropped` gets the others."""
    bad_lines = _kept_apart(config)
    problems = _without(read_jsonl(path, bad_lines=bad_lines), config.leave_out)
    if bad_lines:
        dropped[f"are bad lines of {path}; the first: {bad_lines[0]}"] += len(bad_lines)
    distinct = remove_duplicates(problems)
    dropped[f"ask what an earlier line of {path} asks"] += len(problems) - len(distinct)
    return _drop_long(distinct, config, tokenizer, dropped)


def _kept_apart(config: DataConfig) -> list[DataError] | None:
    """For the bad lines of a file, where they are set aside."""
    return [] if config.bad_lines is BadLines.set_aside else None


def _without(problems: Sequence[Problem], datasets: Collection[str]) -> list[Problem]:
    """The problems of other data sets.

    Raises:
        DataError: there is none.
    """
    kept = [problem for problem in problems if problem.dataset not in datasets]
    if not kept:
        raise DataError(
            f"all {len(problems)} prompts are of data sets that data.leave_out names: "
            f"{', '.join(datasets)}. Leave fewer out"
        )
    return kept


def _split_with_file(
    problems: Sequence[Problem], heldout: Sequence[Problem], corpus_frac: float
) -> Splits:
    """Held-out problems from a file of their own; their questions are kept out of the others."""
    questions = {problem.question for problem in heldout}
    others = [problem for problem in problems if problem.question not in questions]
    train, corpus = split_corpus(others, corpus_frac=corpus_frac)
    return Splits(train=train, corpus=corpus, heldout_side=tuple(heldout))


def _drop_long(
    problems: Sequence[Problem], config: DataConfig, tokenizer: Tokenizer, dropped: Counter[str]
) -> list[Problem]:
    """The problems whose prompts have at most `data.max_prompt_tokens` tokens."""
    lengths = tokenizer.lengths([render(config.template, p.question) for p in problems])
    kept = [
        problem
        for problem, length in zip(problems, lengths, strict=True)
        if length <= config.max_prompt_tokens
    ]
    if not kept:
        raise DataError(
            f"every prompt is longer than data.max_prompt_tokens = {config.max_prompt_tokens}; the "
            f"shortest of {len(problems)} has {min(lengths)} tokens. Set it to that or more"
        )
    long = f"are longer than data.max_prompt_tokens = {config.max_prompt_tokens}"
    dropped[long] += len(problems) - len(kept)
    return kept


def _check_sizes(splits: Splits, config: DataConfig) -> None:
    available = len(splits.heldout_side)
    if available < config.heldout_problems:
        raise DataError(
            f"data.heldout_problems = {config.heldout_problems}, and only {available} distinct "
            "problems can be held out. Lower it, or "
            + (
                "supply more problems in data.heldout_path (without one, a tenth of data.path)"
                if config.source is PromptSourceKind.jsonl
                else f"raise data.num_problems = {config.num_problems} (a tenth of the distinct "
                "ones can be held out), or widen data.task_options"
            )
        )
    if not splits.train:
        raise DataError(
            f"no problem is left to train on: {len(splits.corpus)} belong to the corpus "
            f"(data.corpus_frac = {config.corpus_frac}) and {available} to the held-out side. "
            "Supply more problems or lower data.corpus_frac"
        )
