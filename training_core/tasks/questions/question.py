"""Questions with a level, a verified answer and a provenance: the unit of a curriculum.

Every question records how its answer was verified. "exact": the generator recomputes it from a seed. "program": a
program that computes the answer was run in a sandbox. "agreement": other models gave the same answer.

Near-duplicate detection is exact, not sampled: only pairs that share several of their rarest shingles can reach the
threshold (the prefix filter of Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins", 2006, in the
longer form of Wang, Li and Feng, "Can we beat the prefix filtering?", 2012), and the Jaccard similarity is computed for
those.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from training_core.store.atomic import replacing

Check = Literal["exact", "program", "agreement"]
Source = Literal["generator", "frontier"]

LEVELS = range(1, 11)
SHINGLE_CHARS = 5
NEAR_DUPLICATE = 0.8  # Jaccard similarity of the sets of shingles
_MEETINGS = 16  # k of the prefix filter: larger k lengthens prefixes, smaller k adds comparisons; no pair is missed

_STRICT = ConfigDict(extra="forbid", strict=True)
_NUMBER = re.compile(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.([0-9]*))?|([+-]?)\.([0-9]+)")
_RATIO = re.compile(r"([+-]?[0-9]+) ?/ ?([0-9]+)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKS = "\"'`*$ \u201c\u201d\u2018\u2019"  # straight and typographic quotes, Markdown's and TeX's marks
# Only the width folding of NFKC: the rest would read two cubed as 23, and one and a half as 11/2.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SIGNATURE = re.compile(r"[0-9]+(?:\.[0-9]+)?|[+*/^=<>%\u00d7\u00f7\u2212]|(?<![^\W\d_])-(?![^\W\d_])")
_LONGEST_NUMBER = 1000  # characters; longer ones are compared as text


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a question, sufficient to regenerate or recheck it.

    source: "generator" (a program) or "frontier" (a frontier model).
    name: the generator or the model. seed: the generator's, or the one sent with the request.
    settings: SHA-256 of the generator's settings, or of the request.
    verified_by: the models that agreed on the answer. cost_usd: cost of asking and verifying, in US dollars.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    source: Source
    name: str
    seed: int
    settings: str
    verified_by: tuple[str, ...] = ()
    cost_usd: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("provenance.name must name the generator or the model, got an empty string")
        if not re.fullmatch(r"[0-9a-f]{64}", self.settings):
            raise ValueError(f"provenance.settings must be a SHA-256 in hexadecimal, got {self.settings!r}")
        if not (math.isfinite(self.cost_usd) and self.cost_usd >= 0):
            raise ValueError(f"provenance.cost_usd must be a finite amount of at least 0, got {self.cost_usd}")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a curriculum, whose answer was verified as `check` states.

    level: difficulty, 1 (easiest) to 10. family: the kind of task, as in the task bank.
    program: source that computes the answer; present if and only if `check` is "program".
    solution: worked steps that lead to the answer, possibly with tool calls (`questions.tools`); may be empty.

    Raises:
        ValueError: when a field is out of range, or the provenance does not support the check.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    level: int
    family: str
    prompt: str
    answer: str
    provenance: Provenance
    check: Check
    program: str = ""
    solution: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must lie in [1, 10], got {self.level}")
        texts = (("family", self.family), ("prompt", self.prompt), ("answer", self.answer))
        for name, text in texts:
            if not text.strip():
                raise ValueError(f"{name} must not be empty, got {text!r}")
        for name, text in (*texts, ("solution", self.solution)):
            if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None):
                raise ValueError(f"{name} must be text without control characters, got {bad!r} in it")
        if bool(self.program.strip()) != (self.check == "program"):
            raise ValueError(f"a program belongs to the check 'program' and to no other, got check {self.check!r}")
        if (self.check == "exact") != (self.provenance.source == "generator"):
            raise ValueError(
                f"the check 'exact' is what generators have, and models never: got check {self.check!r} of source "
                f"{self.provenance.source!r}"
            )
        others = set(self.provenance.verified_by) - {self.provenance.name}
        if self.check == "agreement" and len(others) < 2:
            raise ValueError(f"agreement takes two other models, got {sorted(others)} beside {self.provenance.name!r}")


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The questions `kept`, in the order given, and the number dropped by reason.

    repeated: same prompt and answer as an earlier question. near: near-duplicate of an earlier prompt, with the same
    numbers and the same answer. contradictory: the same prompt has two answers, so at least one is wrong; all are
    dropped. avoided: duplicate or near-duplicate of a prompt to avoid.
    """

    kept: tuple[Question, ...]
    repeated: int
    near: int
    contradictory: int
    avoided: int


def normalise_answer(text: str) -> str:
    """Return the canonical form of an answer: without differences of case, width, whitespace, surrounding quotes and
    markup, a final full stop, or `\\boxed{}`.

    Numbers become exact fractions: "+1,234.50", "1234.5" and "2469/2" are equal, "1,23" is not a number. Nothing else
    is interpreted: "12 apples" is not "12", and "1e3" and "50%" stay as they are.
    """
    plain = normalise_prompt(text.replace("\u2212", "-"))
    if boxed := _BOXED.fullmatch(plain.strip("$ ")):
        plain = boxed[1]
    bare = plain.strip(_MARKS).rstrip(".!").strip(_MARKS) or plain
    return _number(bare) or bare


def normalise_prompt(text: str) -> str:
    """Return the canonical form of a prompt: case, width and whitespace folded."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_FULL_WIDTH).casefold().split())


def jaccard(first: str, second: str) -> float:
    """Return |A & B| / |A | B| of the 5-character shingle sets of two prompts after normalisation."""
    a, b = shingles(normalise_prompt(first)), shingles(normalise_prompt(second))
    return len(a & b) / len(a | b)


def shingles(normalised: str) -> frozenset[str]:
    """Return the set of 5-character substrings; a shorter text is its own shingle."""
    last = max(1, len(normalised) - SHINGLE_CHARS + 1)
    return frozenset(normalised[i : i + SHINGLE_CHARS] for i in range(last))


def deduplicate(
    questions: Sequence[Question], avoid: Iterable[str] = (), threshold: float = NEAR_DUPLICATE
) -> Deduplicated:
    """Keep the first of each group of duplicates and near-duplicates.

    avoid: prompts of held-out tasks, excluded exactly and nearly, whatever their answer.
    threshold: two prompts are near-duplicates when the Jaccard similarity of their shingles reaches it, their numbers
        and signs agree in order ("7 + 5" is no duplicate of "7 - 5" or of "7 + 6"), and their normalised answers
        agree.

    Raises:
        ValueError: when the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is a similarity in (0, 1], got {threshold}")
    answers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        answers[normalise_prompt(question.prompt)].add(normalise_answer(question.answer))
    counts: Counter[str] = Counter()
    first: dict[str, Question] = {}
    for question in questions:
        prompt = normalise_prompt(question.prompt)
        if len(answers[prompt]) > 1:
            counts["contradictory"] += 1
        elif prompt in first:
            counts["repeated"] += 1
        else:
            first[prompt] = question
    avoided = list(dict.fromkeys(normalise_prompt(text) for text in avoid))
    texts = [*avoided, *first]
    labels = [""] * len(avoided) + [normalise_answer(q.answer) for q in first.values()]
    kept: set[int] = set()
    for place, earlier in enumerate(_similar_before(texts, threshold)):
        if place < len(avoided):
            continue
        if any(other < len(avoided) for other in earlier):
            counts["avoided"] += 1
        elif any(other in kept and labels[other] == labels[place] for other in earlier):
            counts["near"] += 1
        else:
            kept.add(place)
    remaining = tuple(q for place, q in enumerate(first.values(), len(avoided)) if place in kept)
    return Deduplicated(remaining, counts["repeated"], counts["near"], counts["contradictory"], counts["avoided"])


def _similar_before(texts: Sequence[str], threshold: float) -> list[list[int]]:
    """For each text, the earlier ones with the same numbers and signs and a Jaccard similarity of at least `threshold`.

    A set of n shingles with similarity t to another shares at least ceil(t n) of them with it. If all shingles are
    ordered, rarest first, the k rarest common ones are therefore among the first n - ceil(t n) + k of both sets: only
    pairs that collide there k times are compared (ceil(t n) times where that is less than k).
    """
    sets = [shingles(text) for text in texts]
    signatures = [tuple(_SIGNATURE.findall(text)) for text in texts]
    frequency = Counter(shingle for group in sets for shingle in group)
    seen: dict[tuple[tuple[str, ...], str], list[int]] = defaultdict(list)
    similar: list[list[int]] = []
    for place, group in enumerate(sets):
        ordered = sorted(group, key=lambda shingle: (frequency[shingle], shingle))
        common = math.ceil(threshold * len(group) - 1e-9)
        prefix = ordered[: len(group) - common + _MEETINGS]
        meetings: Counter[int] = Counter()
        for shingle in prefix:
            meetings.update(seen[signatures[place], shingle])
            seen[signatures[place], shingle].append(place)
        candidates = (other for other, number in meetings.items() if number >= min(_MEETINGS, common))
        near = (o for o in candidates if len(group & sets[o]) >= threshold * len(group | sets[o]) - 1e-9)
        similar.append(sorted(near))
    return similar


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write one JSON object per line, atomically and durably, and return their number; `path` survives a failure."""
    number = 0
    with replacing(path) as temporary, temporary.open("wb") as file:
        for question in questions:
            file.write(_QUESTION.dump_json(question) + b"\n")
            number += 1
    return number


def read_questions(path: Path) -> list[Question]:
    """Read a file of `write_questions`.

    Raises:
        ValueError: naming the line, when a field is missing, unknown, of another type or out of range.
    """
    questions = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                questions.append(_QUESTION.validate_json(line))
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                where = ".".join(str(part) for part in first["loc"]) or "the line"
                raise ValueError(f"{path}, line {number}: {where}: {first['msg']}") from None
    return questions


def _number(text: str) -> str:
    """The exact fraction that `text` spells, or an empty string if it is not a number."""
    if len(text) > _LONGEST_NUMBER:
        return ""
    if ratio := _RATIO.fullmatch(text):
        return str(Fraction(int(ratio[1]), int(ratio[2]))) if int(ratio[2]) else ""
    if match := _NUMBER.fullmatch(text):
        return str(Fraction(match[0].replace(",", "")))
    return ""


_QUESTION = TypeAdapter(Question)
