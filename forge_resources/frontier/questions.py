"""Prompts for frontier models, and strict parsing of their replies: a reply that does not match the schema exactly is
rejected and counted by reason.
"""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forge_resources.frontier.protocol import ChatRequest

FAMILIES: Mapping[str, str] = {
    "arithmetic": "calculations with integers, fractions and percentages, also told as a short story",
    "logic": "deductions from statements that are given, with the answer Yes, No or a name",
    "needle": "short texts of several statements in which one statement answers the question",
}
LEVELS: Mapping[int, str] = {
    1: "one step, numbers or statements that a child of six knows",
    2: "one step with two-digit numbers, or two statements",
    3: "two steps",
    4: "two steps with something that must be ignored",
    5: "three steps",
    6: "three steps with larger numbers, or a negation",
    7: "four steps, one of them backwards",
    8: "five steps with intermediate results that must be remembered",
    9: "several quantities or persons that depend on each other",
    10: "as hard as a question can be that still has one short, certain answer",
}
_WRITER = "You write questions for examinations. Every question has exactly one correct answer, which is short."
_SOLVER = "You answer questions. Think step by step, then give the answer alone: a number, a word or a name."
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


class QuestionCandidate(BaseModel):
    """A question written by a model, whose answer has not been verified."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: str = Field(min_length=8, max_length=2000)
    answer: str = Field(min_length=1, max_length=200)
    program: str = Field(max_length=4000)


class _Candidates(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    questions: list[object]


class _Solution(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    reasoning: str
    answer: str = Field(min_length=1, max_length=200)


@dataclass(frozen=True, slots=True)
class Parsed:
    """The candidates of a reply, and the reasons why others in it were rejected."""

    candidates: tuple[QuestionCandidate, ...]
    rejected: tuple[str, ...]


def ask_for_questions(
    model: str, level: int, family: str, description: str, number: int, seed: int, max_tokens: int
) -> ChatRequest:
    """Return a request for `number` questions of one level and family; the seed makes otherwise equal requests
    differ."""
    prompt = (
        f"Write {number} different questions. Kind: {family}, {description}. Difficulty {level} of 10: "
        f"{LEVELS[level]}. Each question stands alone and is at most 80 words long. The answer is a number, a word or "
        "a name, without a unit and without an explanation. Give also a short Python program that computes the answer "
        "from the numbers or facts of the question and prints it, and nothing else; use no imports but math, no input, "
        "and do not merely print the answer. Where no program can compute it, give an empty string.\n"
        'Reply with JSON alone: {"questions": [{"question": "...", "answer": "...", "program": "..."}]}\n'
        f"Series {seed}: choose names, numbers and settings that differ from other series."
    )
    return ChatRequest(
        model=model,
        system=_WRITER,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=1.0,
        seed=seed,
        schema_name="questions",
        json_schema=_QUESTIONS_SCHEMA,
    )


def ask_for_answer(model: str, question: str, seed: int, max_tokens: int) -> ChatRequest:
    """Return a request to answer one question, without revealing its author's answer."""
    return ChatRequest(
        model=model,
        system=_SOLVER,
        prompt=f'{question}\n\nReply with JSON alone: {{"reasoning": "...", "answer": "..."}}',
        max_tokens=max_tokens,
        temperature=0.0,
        seed=seed,
        schema_name="solution",
        json_schema=_SOLUTION_SCHEMA,
    )


def parse_questions(text: str, number: int) -> Parsed:
    """Parse a reply to `ask_for_questions` into candidates, at most `number` of them."""
    try:
        items = _Candidates.model_validate_json(_unfenced(text)).questions
    except ValidationError as error:
        return Parsed((), (f"malformed reply: {_first(error)}",))
    candidates: list[QuestionCandidate] = []
    rejected: list[str] = []
    for item in items:
        if len(candidates) == number:
            rejected.append("more questions than were asked for")
            continue
        try:
            candidate = QuestionCandidate.model_validate(item)
        except ValidationError as error:
            rejected.append(f"malformed question: {_first(error)}")
            continue
        if _is_text(candidate.question) and _is_text(candidate.answer) and candidate.answer.strip():
            candidates.append(candidate)
        else:
            rejected.append("malformed question: blank, or with control characters")
    return Parsed(tuple(candidates), tuple(rejected) if items else ("malformed reply: no questions",))


def parse_answer(text: str) -> str | None:
    """Parse a reply to `ask_for_answer`; None if it is malformed."""
    try:
        answer = _Solution.model_validate_json(_unfenced(text)).answer.strip()
    except ValidationError:
        return None
    return answer if answer and _is_text(answer) else None


def _unfenced(text: str) -> str:
    """The text without a Markdown fence around the whole of it, the only deviation that is tolerated."""
    fenced = _FENCED.fullmatch(text.strip())
    return fenced[1] if fenced else text.strip()


def _is_text(text: str) -> bool:
    return bool(text.strip()) and not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['type']}" if where else str(first["type"])


def _object(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_QUESTIONS_SCHEMA = json.dumps(
    _object(questions={"type": "array", "items": _object(question=_TEXT, answer=_TEXT, program=_TEXT)})
)
_SOLUTION_SCHEMA = json.dumps(_object(reasoning=_TEXT, answer=_TEXT))
