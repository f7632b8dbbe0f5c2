"""The grammar: every wording of every event, reason and question, in one table that is both realised and parsed.

A wording is a row of words and slots. A slot names roles of its kind (`ROLES`), so the wording "{p} gave {q} {t}" of
`give` has three. A wording that starts with {p} is a subject and a predicate; two of the same person can be joined by
"and". A wording marked "!" is held out: training text never has it.

| slot | form | slot | form |
|---|---|---|---|
| p | subject: a name, or he or she | P, Q | a name |
| q | object: a name, or him or her | he, him, his, himself | form of the pronoun for p |
| t | "the ball", or it | T, U | "the ball" |
| x, y | "the kitchen" | c | "the box" |
| a_d_t | "a red ball" | a_k | "an apple" |
| n_k | "three apples", "one apple" | k | "apples" |
| were_n | "was" for one, else "were" | d, w, f, m | the bare word |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

Table = Mapping[str, tuple[str, tuple[str, ...]]]

EVENTS: Table = {
    # facts
    "time": ("m", ("it was {m}", "{m} came", "!it was now {m}")),
    "be": ("p x", ("{p} was in {x}", "{p} sat in {x}", "{p} stood in {x}", "!{p} waited in {x}")),
    "be_not": ("p x", ("{p} was not in {x}", "{p} was out of {x}")),
    "lies": ("t x", ("{T} was in {x}", "{T} lay in {x}", "in {x} was {T}", "!{x} had {T} in it")),
    "there": ("d t x", ("there was {a_d_t} in {x}", "{a_d_t} was in {x}", "!in {x} there was {a_d_t}")),
    "inside": ("t c", ("{T} was in {c}", "{T} lay in {c}", "in {c} was {T}", "!{c} had {T} in it")),
    "looks": ("t d", ("{T} was {d}", "{T} looked {d}", "!{T} seemed {d}")),
    "looks_not": ("t d", ("{T} was not {d}", "{T} did not look {d}")),
    "made": ("t w", ("{T} was made of {w}", "!{T} was made from {w}")),
    "have": ("p t", ("{p} had {T}", "{p} held {T}", "!{T} was with {P}")),
    "have_not": ("p t", ("{p} did not have {T}", "{p} did not hold {T}")),
    "have_such": ("p d t", ("{p} had {a_d_t}", "{p} held {a_d_t}")),
    "have_some": ("p n k", ("{p} had {n_k}", "{p} held {n_k}")),
    "there_are": ("n k x", ("there {were_n} {n_k} in {x}", "{n_k} {were_n} in {x}")),
    "near": ("x y", ("{x} was next to {y}", "{x} was near {y}")),
    "bigger": ("t u", ("{T} was bigger than {U}", "{U} was smaller than {T}", "!{T} was larger than {U}")),
    "locked": ("c", ("{c} was locked", "!{c} had a lock")),
    "want": ("p t", ("{p} wanted {T}", "{p} wanted to have {T}", "!{p} wished for {T}")),
    "feel": ("p f", ("{p} was {f}", "{p} felt {f}")),
    "sad_lost": ("p t", ("{p} was sad because {he} lost {T}", "{p} felt sad because {he} lost {T}")),
    "glad_found": ("p t", ("{p} was glad because {he} found {T}", "{p} felt glad because {he} found {T}")),
    "glad_given": ("p q t", ("{p} was glad because {Q} gave {him} {T}", "{p} felt glad because {Q} gave {him} {T}")),
    # events
    "go": ("p x", ("{p} went to {x}", "{p} walked to {x}", "{p} ran to {x}", "!{p} came to {x}")),
    "go_wanting": ("p x t", ("{p} went to {x} because {he} wanted {T}", "{p} ran to {x} because {he} wanted {T}")),
    "go_needing": ("p x f", ("{p} went to {x} because {he} was {f}", "{p} ran to {x} because {he} was {f}")),
    "take": ("p t", ("{p} took {t}", "{p} picked up {T}", "{p} got {t}", "!{p} grabbed {t}")),
    "drop": ("p t", ("{p} put down {T}", "{p} left {t} there", "!{p} dropped {t}")),
    "lose": ("p t", ("{p} lost {t}", "{p} lost {t} there")),
    "give": ("p t q", ("{p} gave {q} {T}", "{p} gave {t} to {q}", "{Q} got {T} from {P}", "!{p} handed {t} to {q}")),
    "put": ("p t c", ("{p} put {t} in {c}", "{p} laid {t} in {c}", "!{p} placed {t} in {c}")),
    "take_out": ("p t c", ("{p} took {t} out of {c}", "{p} got {t} out of {c}")),
    "open": ("p c", ("{p} opened {c}", "{p} opened {c} with the key", "!{p} unlocked {c}")),
    "find": ("p t", ("{p} found {t}", "{p} saw {t} and took it")),
    "take_some": ("p n k", ("{p} took {n_k}", "{p} picked up {n_k}")),
    "give_some": ("p n k q", ("{p} gave {q} {n_k}", "{p} gave {n_k} to {q}", "!{p} handed {n_k} to {q}")),
    "find_some": ("p n k", ("{p} found {n_k}", "{p} bought {n_k}")),
    "lose_some": ("p n k", ("{p} lost {n_k}", "{p} sold {n_k}")),
    "eat": ("p k", ("{p} ate {a_k}", "{p} ate one of the {k}")),
    "sleep": ("p", ("{p} went to sleep", "{p} fell asleep")),
    "wake": ("p", ("{p} woke up", "{p} got up")),
    "fall": ("p", ("{p} fell in the mud", "!{p} slipped in the mud")),
    "wash": ("p", ("{p} washed {himself}", "{p} cleaned {himself}")),
    # direct speech
    "greet": ("p q", ('"hello, {Q}," said {P}', '"how are you, {Q}?" asked {P}', '!"good day, {Q}," said {P}')),
    "ask_for": (
        "p q t",
        (
            '"please give me {T}, {Q}," said {P}',
            '"can I have {T}, {Q}?" asked {P}',
            "{p} asked {Q} for {T}",
            '!"may I have {T}, {Q}?" asked {P}',
        ),
    ),
    "ask_food": ("p q k", ('"can I have {a_k}, {Q}?" asked {P}', "{p} asked {Q} for {a_k}")),
    "ask_where": ("p q t", ('"where is {T}, {Q}?" asked {P}', "{p} asked {Q} about {T}")),
    "promise": (
        "p q t",
        (
            '"I will bring you {T}, {Q}," said {P}',
            '"I will get {T} for you, {Q}," said {P}',
            '!"{Q}, I will bring you {T}," said {P}',
        ),
    ),
    "thank": ("p q", ('"thank you, {Q}," said {P}', "{p} thanked {Q}")),
    "tell": ("p t x", ('"{T} is in {x}," said {P}', "{p} said that {T} was in {x}")),
    "tell_owner": ("p q t", ('"{Q} has {T}," said {P}', "{p} said that {Q} had {T}")),
}  # fmt: skip

REASONS: Table = {
    "lost": ("p t", ("{he} lost {T}",)),
    "found": ("p t", ("{he} found {T}",)),
    "got": ("p t", ("{he} got {T}",)),
    "given": ("p q t", ("{Q} gave {him} {T}",)),
    "wanted": ("p t", ("{he} wanted {T}",)),
    "felt": ("p f", ("{he} was {f}",)),
    "fell": ("p", ("{he} fell in the mud",)),
}

QUESTIONS: Table = {
    "where": ("p", ("where is {P}", "in which place is {P}", "!what place is {P} in")),
    "where_thing": ("t", ("where is {T}", "where can we find {T}", "!where can we see {T}")),
    "place_of": ("t", ("in which place is {T}", "which place is {T} in", "!what place is {T} in")),
    "who_has": ("t", ("who has {T}", "who holds {T}", "!who is it that has {T}")),
    "color": ("t", ("what color is {T}", "what color does {T} have", "!what is the color of {T}")),
    "size": ("t", ("what size is {T}", "how big is {T}", "!what is the size of {T}")),
    "material": ("t", ("what is {T} made of", "!what was used to make {T}")),
    "color_held": ("p", ("what color is the thing that {P} has", "!what color is the thing with {P}")),
    "color_in": ("c", ("what color is the thing in {c}", "!which color is the thing in {c}")),
    "how_many": ("p k", ("how many {k} does {P} have", "how many {k} does {P} hold", "!how many {k} are with {P}")),
    "before": ("p x", ("where was {P} before {x}", "!where was {P} before going to {x}")),
    "after": ("p x", ("where did {P} go after {x}", "!where did {P} go from {x}")),
    "had_before": ("t p", ("who had {T} before {P}", "!who was it that had {T} before {P}")),
    "had_after": ("t p", ("who had {T} after {P}", "!who was it that had {T} after {P}")),
    "why": ("p f", ("why is {P} {f}", "why does {P} feel {f}", "!for what reason is {P} {f}")),
    "why_go": ("p x", ("why did {P} go to {x}", "!for what reason did {P} go to {x}")),
    "bigger": ("t u", ("which is bigger, {T} or {U}", "what is bigger, {T} or {U}", "!which is larger, {T} or {U}")),
    "smaller": ("t u", ("which is smaller, {T} or {U}", "!what is smaller, {T} or {U}")),
    "is_at": ("p x", ("is {P} in {x}", "!can we see {P} in {x}")),
    "is_place": ("t x", ("is {T} in {x}", "!can we see {T} in {x}")),
    "has": ("p t", ("does {P} have {T}", "!has {P} got {T}")),
    "is_like": ("t d", ("is {T} {d}", "!does {T} look {d}")),
    "what_has": ("p", ("what does {P} have", "what things does {P} have", "!what things are with {P}")),
    "who_at": ("x", ("who is in {x}", "!which people are in {x}")),
    "what_in": ("c", ("what is in {c}", "!which thing is in {c}")),
    "between": ("x y", ("what is between {x} and {y}", "!what lies between {x} and {y}")),
}

LEADS = ("then", "after that", "soon", "later")
TIMES = {"in the morning": "morning", "in the afternoon": "afternoon", "in the evening": "evening", "at night": "night"}
_UNLED = "be be_not have have_not have_such have_some want feel sad_lost glad_found glad_given"
LED = frozenset(EVENTS) - frozenset(_UNLED.split())
_FORMS = "p q P Q t T U x y c d w f n m k he him his himself a_d_t a_k n_k were_n"
FORMS = frozenset(_FORMS.split())

_SLOT = re.compile(r"\{(\w+)\}")
_PIECE = re.compile(r'\{\w+\}|[A-Za-z]+|[,?"]')


@dataclass(frozen=True, slots=True)
class Wording:
    """One wording of a kind. pieces: words, marks and slots in order; a slot is written with its braces.

    predicate: whether it starts with the subject {p}, so that "and" can join it to another one of the same person.
    led: whether a lead may stand before it. held_out: whether training text may not have it.
    """

    kind: str
    roles: tuple[str, ...]
    text: str
    pieces: tuple[str, ...]
    predicate: bool
    led: bool
    held_out: bool


@cache
def wordings(kind: str) -> tuple[Wording, ...]:
    """Return all wordings of an event, a reason or a question, those for training first.

    Raises:
        ValueError: when there is no such kind.
    """
    found = TABLE.get(kind)
    if found is None:
        raise ValueError(f"the grammar has no kind {kind!r}: it has {', '.join(TABLE)}")
    return found


def _wording(kind: str, roles: str, marked: str) -> Wording:
    text = marked.removeprefix("!")
    if unknown := set(_SLOT.findall(text)) - FORMS:
        raise ValueError(f"{kind}: the wording {text!r} has unknown slots {sorted(unknown)}: use those of the table")
    pieces = tuple(_PIECE.findall(text))
    subject = text.startswith("{p}")
    joined = subject and not {"because", "and", "that"} & set(pieces)
    return Wording(kind, tuple(roles.split()), text, pieces, joined, subject and kind in LED, marked[0] == "!")


BOTH = _wording("both", "p q x", "{P} and {Q} went to {x}")  # two events: both go
TABLE: Mapping[str, tuple[Wording, ...]] = {
    **{kind: tuple(_wording(kind, roles, text) for text in texts) for kind, (roles, texts) in EVENTS.items()},
    **{kind: tuple(_wording(kind, roles, text) for text in texts) for kind, (roles, texts) in REASONS.items()},
    **{f"?{kind}": tuple(_wording(kind, roles, text) for text in texts) for kind, (roles, texts) in QUESTIONS.items()},
}
