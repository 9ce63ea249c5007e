"""The split: disjoint, stable, by question alone."""

from __future__ import annotations

from megatron_r1.data.problems import Problem, remove_duplicates, split_by_hash


def problem(number: int) -> Problem:
    return Problem(
        id=str(number), question=f"{number} + 1 =", answer=str(number + 1), grader="exact"
    )


def questions(problems) -> set[str]:
    return {p.question for p in problems}


def test_the_first_of_equal_questions_stays():
    again = Problem(id="again", question="1 + 1 =", answer="3", grader="exact")
    assert [p.id for p in remove_duplicates([problem(0), problem(1), again])] == ["0", "1"]


def test_sides_are_disjoint_and_complete_and_near_their_shares():
    problems = [problem(number) for number in range(10_000)]
    splits = split_by_hash(problems, corpus_frac=0.4)
    sides = [splits.train, splits.corpus, splits.heldout_side]
    assert sum(map(len, sides)) == len(set().union(*map(questions, sides))) == 10_000
    # 10% held out, 40% and 60% of the rest; 3 standard deviations are below 0.015 of 10,000.
    for side, share in zip(sides, (0.54, 0.36, 0.10), strict=True):
        assert abs(len(side) / 10_000 - share) < 0.015


def test_a_question_keeps_its_side_whatever_was_drawn_beside_it():
    few = split_by_hash([problem(number) for number in range(0, 1000, 7)], corpus_frac=0.4)
    many = split_by_hash([problem(number) for number in range(2000)], corpus_frac=0.4)
    assert questions(few.heldout_side) <= questions(many.heldout_side)
    assert questions(few.corpus) <= questions(many.corpus)
    assert questions(few.train) <= questions(many.train)


def test_a_larger_corpus_takes_from_training_only():
    problems = [problem(number) for number in range(1000)]
    small = split_by_hash(problems, corpus_frac=0.1)
    large = split_by_hash(problems, corpus_frac=0.5)
    assert questions(small.corpus) < questions(large.corpus)
    assert small.heldout_side == large.heldout_side
