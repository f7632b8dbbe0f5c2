"""Ten levels of verifiable questions, from copying a letter to long calculations, each reproducible from a seed.

The order: each level adds at most one requirement to those of the level before.

    1   repeat one or two symbols; pick the first or last of a short list       attention to a place
    2   repeat words, order three letters, count up to five                      the whole of a short list
    3   the next number, the larger of two, sums of two digits                   facts about small numbers
    4   longer lists, sums of three digits, of a digit and a larger number       two operations
    5   sums of two-digit numbers, letters in a word, words backward             a tool call, or carrying
    6   three terms, products, words in order, one of three statements           longer arguments of a call
    7   brackets, common divisors, legs of animals, equations with two steps     a call that must be derived first
    8   more digits and terms, decimals, weekdays, angles                        facts that the question does not state
    9   long expressions, bases, common multiples, many statements               several of these
    10  the same at the limit of what a line holds                               all of it at length

Whether models find them in this order is measured, not assumed: the fit assumes only that accuracy does not rise with
the level (`assessment`), and the raw accuracy of each level is reported as well.

A question's *content* is what it asks, independent of wording. The split is a hash of the content, so held-out
questions share no content with training, not even a sum of two digits in other words. The wording is drawn
independently of the kind; the last wording of each kind is held out: training never has it.

Levels can also come from the generated world (`world.tasks`): there a level is a size of story and a number of hops.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cache

from training_core.data.documents import SPLITS
from training_core.store.bundle import canonical_json
from training_core.tasks.questions.gym_items import GENERATORS, UnclearItemError, gym_dataset
from training_core.tasks.questions.primitives import PRIMITIVES, Item, Setting, canonical
from training_core.tasks.questions.question import LEVELS, Provenance, Question, normalise_answer
from training_core.world.config import WorldConfig
from training_core.world.tasks import another, is_about_world, is_reworded

NEW_WORDINGS = 0.2  # share of held-out questions in a wording that training never has
_HELD_OUT_IN_20 = {"validation": range(0, 3), "test": range(3, 6)}
_UNCLEAR_TRIES = 50
_VARIANT_TRIES = 200
_STRIDE = 1 << 32  # distance between the substitutes of a seed whose item is unclear


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of question at one level: a task of `primitives` or `gym_items` with settings; `name` is unique."""

    level: int
    family: str
    name: str
    task: str
    settings: tuple[tuple[str, Setting], ...]

    @property
    def wordings(self) -> tuple[str, ...]:
        """The wordings that the cell's questions can have; the last one is held out."""
        return (PRIMITIVES[self.task] if self.task in PRIMITIVES else GENERATORS[self.task]).wordings

    def item(self, seed: int) -> Item:
        """Return the item of a seed, before it is worded. Raises UnclearItemError if it has several right answers."""
        if self.task in PRIMITIVES:
            draw = random.Random(f"{self.name}/{seed}")
            return PRIMITIVES[self.task].draw(draw, dict(self.settings))
        generator = GENERATORS[self.task]
        return generator.read(gym_dataset(self.name, generator.name, self.settings)[seed])


def _cell(level: int, family: str, task: str, **settings: Setting) -> Cell:
    suffix = "-".join(str(value) for value in settings.values() if not isinstance(value, tuple))
    return Cell(level, family, f"{task}-{suffix}" if suffix else task, task, tuple(sorted(settings.items())))


def _terms(level: int, task: str, terms: tuple[int, int], digits: tuple[int, int], **more: int) -> Cell:
    sizes = {"min_terms": terms[0], "max_terms": terms[1], "min_digits": digits[0], "max_digits": digits[1]}
    return _cell(level, "arithmetic", task, **sizes, **more)


def _expression(level: int, terms: tuple[int, int], digits: tuple[int, int]) -> Cell:
    plain = _terms(level, "expression", terms, digits)
    bracketed: dict[str, Setting] = {"operators": ("+", "-", "*"), "allow_parentheses": 1, "allow_negation": 0}
    return replace(plain, settings=tuple(sorted({**dict(plain.settings), **bracketed}.items())))


def _sequence(level: int, family: str, task: str, least: int, most: int, **more: int | str) -> Cell:
    return _cell(level, family, task, least=least, most=most, **more)


_CELLS = (
    _sequence(1, "copying", "copy_letters", 1, 2),
    _sequence(1, "lists", "first", 2, 4, end="first", of="letters"),
    _sequence(1, "lists", "last", 2, 4, end="last", of="letters"),
    _sequence(2, "copying", "copy_words", 1, 2),
    _sequence(2, "copying", "copy_letters", 3, 4),
    _sequence(2, "ordering", "sort", 3, 3, of="letters"),
    _sequence(2, "counting", "tally", 2, 5),
    _sequence(2, "lists", "last", 2, 4, end="last", of="words"),
    _sequence(3, "numbers", "after", 0, 199, way="after"),
    _sequence(3, "numbers", "before", 1, 199, way="before"),
    _sequence(3, "numbers", "larger", 0, 99),
    _sequence(3, "counting", "length", 2, 7),
    _cell(3, "arithmetic", "digit_sum", terms=2),
    _cell(3, "arithmetic", "missing"),
    _sequence(4, "lists", "reverse", 3, 4),
    _sequence(4, "ordering", "sort", 4, 6, of="letters"),
    _sequence(4, "counting", "tally", 5, 9),
    _cell(4, "arithmetic", "digit_sum", terms=3),
    _cell(4, "arithmetic", "digit_sum", terms=2, first="two digits"),
    _terms(5, "sum", (2, 2), (2, 2)),
    _sequence(5, "numbers", "count_on", 0, 0),
    _cell(5, "words", "spell_backward", min_word_len=3, max_word_len=5),
    _cell(5, "words", "letter_counting", min_words=1, max_words=2),
    _cell(5, "arithmetic", "equation", factor=1, most=20),
    _terms(6, "sum", (3, 3), (2, 2)),
    _terms(6, "product", (2, 2), (1, 2)),
    _cell(6, "words", "word_reversal", min_words=3, max_words=3),
    _cell(6, "words", "word_sorting", min_words=3, max_words=3, min_word_length=3, max_word_length=6),
    _cell(6, "needle", "needle", min_num_statements=3, max_num_statements=3),
    _expression(7, (2, 3), (1, 2)),
    _cell(7, "arithmetic", "gcd", min_numbers=2, max_numbers=2, min_value=2, max_value=99),
    _cell(7, "counting", "leg_counting", min_animals=2, max_animals=2, min_instances=1, max_instances=9),
    _cell(7, "arithmetic", "equation", factor=9, most=20),
    _cell(7, "words", "letter_counting", min_words=3, max_words=5),
    _terms(8, "sum", (4, 5), (2, 3)),
    _terms(8, "decimal_sum", (2, 2), (1, 2), min_decimal_places=1, max_decimal_places=2),
    _cell(8, "calendar", "weekday", tasks=("weekday_offset",), offset_upper_bound=30),
    _cell(8, "needle", "needle", min_num_statements=4, max_num_statements=5),
    _cell(8, "geometry", "angle", min_sides=3, max_sides=4),
    _cell(8, "words", "word_sorting", min_words=4, max_words=5, min_word_length=3, max_word_length=8),
    _expression(9, (4, 5), (1, 2)),
    _cell(9, "numbers", "base_conversion", min_base=2, max_base=16, min_value=10, max_value=250),
    _cell(9, "arithmetic", "lcm", min_numbers=2, max_numbers=2, min_value=2, max_value=60),
    _cell(9, "numbers", "count_bits", min_n=16, max_n=4095),
    _cell(9, "needle", "needle", min_num_statements=6, max_num_statements=7),
    _expression(10, (6, 6), (2, 2)),
    _terms(10, "product", (2, 2), (3, 3)),
    _cell(10, "counting", "leg_counting", min_animals=4, max_animals=5, min_instances=1, max_instances=15),
    _cell(10, "numbers", "count_primes", min_n=1, max_n=300),
    _cell(10, "numbers", "base_conversion", min_base=2, max_base=16, min_value=1000, max_value=9999),
)
_BY_NAME: Mapping[tuple[int, str], Cell] = {(cell.level, cell.name): cell for cell in _CELLS}


def cells(level: int) -> tuple[Cell, ...]:
    """Return the cells of a level.

    Raises:
        ValueError: for a level outside 1 .. 10.
    """
    if level not in LEVELS:
        raise ValueError(f"levels lie in [1, 10], got {level}")
    return tuple(cell for cell in _CELLS if cell.level == level)


def make(cell: Cell, seed: int) -> Question:
    """Return the question of a seed, which also determines its wording.

    Raises:
        ValueError: when reasoning-gym, the source of the harder levels, is not installed.
    """
    return make_with_content(cell, seed)[0]


def make_with_content(cell: Cell, seed: int) -> tuple[Question, str]:
    """Return the question of a seed, and its content (`content_of`)."""
    item = _clear_item(cell, seed)
    question = Question(
        level=cell.level,
        family=cell.family,
        prompt=_wording(cell, seed, item.content).format_map(item.parts),
        answer=item.answer,
        provenance=Provenance("generator", cell.name, seed, _settings_digest(cell)),
        check="exact",
        solution=item.solution,
    )
    return question, item.content


def variant(
    question: Question, seed: int, avoid: Container[str] = (), world: WorldConfig | None = None
) -> Question | None:
    """Return another question of the same cell (or level and family of the world) and split, with different content.

    In a cell the wording differs, too. avoid: contents to exclude (`QuestionBank.avoided`). world: settings of the
    world that the question is about, if it is about one. Different seeds give different variants, except in cells with
    few contents. None if the question did not come from a generator, or if no draw is different enough.

    Raises:
        ValueError: when the question is about a world with other settings.
    """
    if is_about_world(question):
        return another(world if world is not None else WorldConfig(), question, seed)
    cell = cell_of(question)
    if cell is None:
        return None
    content = content_of(question)
    split = split_of_content(content)
    wording = _wording(cell, question.provenance.seed, content)
    for attempt in range(_VARIANT_TRIES):
        drawn = seed + attempt * _STRIDE
        other, other_content = make_with_content(cell, drawn)
        if other_content == content or other_content in avoid or split_of_content(other_content) != split:
            continue
        if _wording(cell, drawn, other_content) != wording:
            return other
    return None


def in_new_wording(question: Question) -> bool:
    """Return whether a question is in a wording that training never has."""
    cell = cell_of(question)
    if cell is None:
        return is_reworded(question)
    return _wording(cell, question.provenance.seed, content_of(question)) == cell.wordings[-1]


def cell_of(question: Question) -> Cell | None:
    """Return the cell that a question was made from; None if it did not come from a generator of this ladder."""
    cell = _BY_NAME.get((question.level, question.provenance.name))
    if cell is None or question.check != "exact" or question.provenance.settings != _settings_digest(cell):
        return None
    return cell


def content_of(question: Question) -> str:
    """Return what a question asks, independent of wording."""
    cell = cell_of(question)
    return canonical(question.prompt) if cell is None else _clear_item(cell, question.provenance.seed).content


def split_of(question: Question) -> str:
    """Return "train", "validation" or "test" by a hash of the question's content (70, 15 and 15 % of contents)."""
    return split_of_content(content_of(question))


def split_of_content(content: str) -> str:
    """Return the split of every question with this content."""
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") % 20
    return next((split for split, buckets in _HELD_OUT_IN_20.items() if bucket in buckets), SPLITS[0])


def is_right(question: Question, answer: str) -> bool:
    """Return whether an answer equals the known one after normalisation (`questions.normalise_answer`)."""
    return normalise_answer(answer) == normalise_answer(question.answer)


def _wording(cell: Cell, seed: int, content: str) -> str:
    """The wording of a seed, from a stream of its own: a level's cells and their wordings must not go together."""
    draw = random.Random(f"{cell.name}/wording/{seed}")
    *usual, new = cell.wordings
    held_out = split_of_content(content) != SPLITS[0] and draw.random() < NEW_WORDINGS
    return new if held_out else draw.choice(usual)


@cache
def _settings_digest(cell: Cell) -> str:
    return hashlib.sha256(canonical_json([cell.task, cell.settings, cell.wordings])).hexdigest()


def _clear_item(cell: Cell, seed: int) -> Item:
    """The item of a seed or, if it has several right answers, of the first later stride whose item has one."""
    for attempt in range(_UNCLEAR_TRIES):
        try:
            return cell.item(seed + attempt * _STRIDE)
        except UnclearItemError:
            continue
    raise ValueError(f"{cell.name} gives no clear question for seed {seed}: change its settings in the ladder")
