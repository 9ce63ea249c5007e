"""The words of both languages of the tiny world, side by side.

English is told by its letters and Chinese by its characters, so language consistency
(`rewards/language.py`) can see every word. Chinese is written with spaces around numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tongue:
    """One language: every word that the world's grammars use, and its phrases."""

    code: str
    """ISO 639-1."""
    add: str
    take: str
    makes: str
    stop: str
    """Ends a sentence."""
    sum_question: str
    summary: str
    """Of a reader-friendly answer to a sum; ``{}`` is the boxed number."""
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    actions: tuple[str, ...]
    """What each noun does, in the order of `nouns`: the world's facts."""
    good_verbs: tuple[str, ...]
    bad_verbs: tuple[str, ...]
    openings: tuple[str, ...]
    """Of a question to the assistant about itself."""
    self_questions: tuple[str, ...]
    self_answers: tuple[str, ...]
    translate: str
    describe: str
    write: str
    how_to: str
    how_to_answer: str
    written: str
    does: str
    refusal: str
    offer: str
    """Closes a helpful answer."""
    thoughts: tuple[str, ...]
    """Before an answer to a general request, by `general.KINDS`."""
    guesses: tuple[str, ...]
    """Thoughts of a hasty writer of sums."""
    gap: str
    """Between the words of a phrase."""

    @cached_property
    def things(self) -> tuple[str, ...]:
        """Every adjective with every noun, noun-minor; the same index in both languages."""
        return tuple(f"{a}{self.gap}{n}" for a in self.adjectives for n in self.nouns)


ENGLISH = Tongue(
    code="en",
    add="add",
    take="take",
    makes="makes",
    stop=".",
    sum_question="what is {}?",
    summary="the answer is {}",
    adjectives=("red", "blue", "big", "small", "old", "new", "white", "black"),
    nouns=("cat", "dog", "fish", "bird", "horse", "cow", "car", "clock", "moon", "tree"),
    actions=(
        "sleeps",
        "barks",
        "swims",
        "sings",
        "runs",
        "eats",
        "drives",
        "rings",
        "shines",
        "grows",
    ),
    good_verbs=("wash", "paint", "draw", "find"),
    bad_verbs=("steal", "burn", "poison", "smash"),
    openings=("hello", "hi", "please", "tell me", "friend", "excuse me"),
    self_questions=("who are you?", "what can you do?", "who made you?", "are you alive?"),
    self_answers=(
        "I am a tiny model",
        "I can count and talk",
        "a small program made me",
        "no I am a machine",
    ),
    translate="say {} in Chinese",
    describe="what does the {} do?",
    write="write about the {}",
    how_to="how do I {} the {}?",
    how_to_answer="go slowly and {} the {}",
    written="every day the {} {}",
    does="the {} {}",
    refusal="I can not help with that",
    offer="ask me for more",
    thoughts=(
        "the user wants a translation",
        "the user asks for a fact",
        "the user asks about me",
        "the user wants a story",
        "the user wants to do something",
    ),
    guesses=("this looks easy", "just a guess", "about right", "no need to think"),
    gap=" ",
)
CHINESE = Tongue(
    code="zh",
    add="加",
    take="减",
    makes="得",
    stop="。",
    sum_question="{} 是多少？",
    summary="答案是 {}",
    adjectives=("红", "蓝", "大", "小", "老", "新", "白", "黑"),
    nouns=("猫", "狗", "鱼", "鸟", "马", "牛", "车", "钟", "月", "树"),
    actions=("睡", "叫", "游", "唱", "跑", "吃", "开", "响", "亮", "长"),
    good_verbs=("洗", "漆", "画", "找"),
    bad_verbs=("偷", "烧", "毒", "砸"),
    openings=("你好", "嗨", "请", "告诉我", "朋友", "打扰"),
    self_questions=("你是谁？", "你会什么？", "谁做你？", "你活着吗？"),
    self_answers=("我是小模型", "我会数和说", "小程序做我", "不我是机器"),
    translate="用英文说{}",
    describe="{}做什么？",
    write="写写{}",
    how_to="怎么{}{}？",
    how_to_answer="慢慢{}{}",
    written="每天{}{}",
    does="{}{}",
    refusal="我不帮这个",
    offer="再问我吧",
    thoughts=("用户要翻译", "用户问事实", "用户问我", "用户要故事", "用户要做事"),
    guesses=("看着容易", "猜一猜", "差不多", "不用想"),
    gap="",
)
TONGUES = (ENGLISH, CHINESE)


def other_than(tongue: Tongue) -> Tongue:
    return CHINESE if tongue is ENGLISH else ENGLISH
