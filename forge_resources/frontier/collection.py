"""Collection of verified questions for every level: request, parse, verify, deduplicate, and account for rejections.

Collection proceeds in rounds. The requests of a round depend only on the plan and the answers before it, so a run that
is restarted after a kill finds the answers it paid for in the cache and continues where it was.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

from forge_resources.frontier.cache import Spend
from forge_resources.frontier.client import FrontierClient
from forge_resources.frontier.errors import (
    FrontierError,
    FrontierStopError,
    ModelUnavailableError,
    ServerUnavailableError,
    UncertainRequestError,
)
from forge_resources.frontier.protocol import Answer, ChatRequest
from forge_resources.frontier.questions import FAMILIES, QuestionCandidate, ask_for_questions, parse_questions
from forge_resources.frontier.verification import AgreementCheck, Checked, ProgramCheck, Unverified, Verified
from training_core.reporting import Reporter
from training_core.tasks.questions.question import LEVELS, Provenance, Question, deduplicate
from training_core.tasks.sandbox import Sandbox

_SILENCE = 3  # consecutive unanswered requests, in whole rounds, after which the server counts as silent


class QuestionPlan(BaseModel):
    """Number of questions to collect by level and family, and their verification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[int, ...] = Field(tuple(LEVELS), min_length=1, description="Levels to ask for")
    families: tuple[str, ...] = Field(
        tuple(FAMILIES), min_length=1, description="Families, taken in turn within a level"
    )
    per_level: int = Field(50, ge=1, le=10_000, description="Verified questions to collect at each level")
    per_request: int = Field(4, ge=1, le=20, description="Questions per request")
    checks: tuple[Checked, ...] = Field(
        ("program", "agreement"), min_length=1, description="Checks in order; the next applies where one cannot decide"
    )
    max_requests_per_level: int = Field(100, ge=1, le=1000, description="Maximum requests for questions at one level")
    give_up_after: int = Field(
        24, ge=1, description="A model is dropped after this many candidates without a verified one"
    )
    question_tokens: int = Field(400, ge=50, le=4000, description="Maximum tokens of one question with its program")
    answer_tokens: int = Field(600, ge=50, le=8000, description="Maximum tokens of another model's answer")
    seed: int = Field(17, ge=0, le=10**6, description="Seed of the requests")

    @field_validator("levels")
    @classmethod
    def _are_levels(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if wrong := sorted(set(levels) - set(LEVELS)) or len(set(levels)) < len(levels):
            raise ValueError(f"levels lie in [1, 10], each once, got {levels} ({wrong})")
        return levels

    @field_validator("families")
    @classmethod
    def _are_families(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(families) - set(FAMILIES)):
            raise ValueError(f"families must be among {', '.join(FAMILIES)}, got {', '.join(unknown)}")
        return families


@dataclass(frozen=True, slots=True)
class Collection:
    """The result of a collection. All answers are on disk, so repeating it costs nothing.

    rejected: counts of rejected candidates and replies by reason. stopped: why the plan was not fulfilled; empty if it
    was. judged: for each model, how many questions of others it answered, and how often it agreed.
    """

    questions: tuple[Question, ...]
    rejected: dict[str, int]
    judged: dict[str, tuple[int, int]]
    stopped: str
    spend: Spend

    def describe(self) -> str:
        """Return a summary of what was kept, rejected and spent."""
        lines = [f"{len(self.questions)} verified questions; {self.spend.describe()}"]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        lines += [f"{model} agreed with {a} of {n} answers" for model, (n, a) in sorted(self.judged.items())]
        return "\n".join([*lines, f"stopped: {self.stopped}"] if self.stopped else lines)


async def collect_questions(
    client: FrontierClient,
    plan: QuestionPlan,
    reporter: Reporter,
    sandbox: Sandbox | None = None,
    avoid: Sequence[str] = (),
) -> Collection:
    """Query the client's models in turn until every level has its quota of verified questions.

    If no further request can be sent (no credit, cap reached, full disk, silent server, models that are always wrong),
    the collection contains the questions so far and the reason in `stopped`.

    sandbox: runs the candidates' programs; required if `plan.checks` contains "program". avoid: prompts to exclude.

    Raises:
        ValueError: when a check is impossible: no sandbox, or fewer than three models.
        SandboxUnavailableError: when the sandbox fails.
    """
    collector = _Collector(client, plan, sandbox, avoid)
    stopped = ""
    try:
        while not stopped and (missing := collector.missing()):
            stopped = await collector.round(missing)
            done = sum(min(len(kept), plan.per_level) for kept in collector.kept.values())
            reporter.progress(done, plan.per_level * len(plan.levels), "asking frontier models for questions")
    except FrontierStopError as error:
        stopped = str(error)
    return collector.collection(stopped)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request for questions, with its level and family."""

    level: int
    family: str
    request: ChatRequest


class _Collector:
    """The state of one collection."""

    def __init__(
        self, client: FrontierClient, plan: QuestionPlan, sandbox: Sandbox | None, avoid: Sequence[str]
    ) -> None:
        if "program" in plan.checks and sandbox is None:
            raise ValueError("the check 'program' needs a sandbox: open one, or leave 'program' out of plan.checks")
        self._client = client
        self._plan = plan
        self._avoid = avoid
        self._unavailable: dict[str, str] = {}
        self._program = ProgramCheck(sandbox) if "program" in plan.checks and sandbox is not None else None
        self._agreement = (
            AgreementCheck(client, self._unavailable, plan.answer_tokens, plan.seed)
            if "agreement" in plan.checks
            else None
        )
        self._models = list(client.config.models)  # without those that were dropped
        self._unanswered = 0  # requests since the server's last answer
        self._tried: Counter[str] = Counter()
        self._verified: Counter[str] = Counter()
        self._sent: Counter[int] = Counter()
        self._found: defaultdict[int, list[Question]] = defaultdict(list)
        self._rejected: Counter[str] = Counter()
        self.kept: dict[int, list[Question]] = {level: [] for level in plan.levels}

    def missing(self) -> dict[int, int]:
        """Return the number of questions that each level lacks."""
        lacks = {level: self._plan.per_level - len(kept) for level, kept in self.kept.items()}
        return {level: number for level, number in lacks.items() if number > 0}

    async def round(self, missing: dict[int, int]) -> str:
        """Send requests for the missing questions; return the reason to stop after this round, empty to continue.

        Raises:
            FrontierStopError: when no further request can be sent; verified questions are kept first.
        """
        sent = [one for level, number in missing.items() for one in self._requests(level, number)]
        if not sent:
            left = ", ".join(f"level {level} lacks {number}" for level, number in missing.items())
            return f"max_requests_per_level = {self._plan.max_requests_per_level} is reached; {left}"
        outcomes = await asyncio.gather(*(self._one(one) for one in sent))
        self._keep()
        errors = [outcome for outcome in outcomes if outcome is not None]
        stops = [error for error in errors if isinstance(error, FrontierStopError)]
        if stops:
            raise stops[0]
        silent = [error for error in errors if isinstance(error, ServerUnavailableError | UncertainRequestError)]
        self._unanswered = self._unanswered + len(silent) if len(silent) == len(sent) else 0
        if self._unanswered >= _SILENCE:
            return f"none of the last {self._unanswered} requests brought an answer: {silent[-1]}"
        return self._leave_out()

    def collection(self, stopped: str) -> Collection:
        """Return the collection as it is now."""
        asked, agreed = (self._agreement.asked, self._agreement.agreed) if self._agreement else (Counter(), Counter())
        limit = self._plan.per_level
        return Collection(
            tuple(question for level in sorted(self.kept) for question in self.kept[level][:limit]),
            dict(self._rejected),
            {model: (number, agreed[model]) for model, number in asked.items()},
            stopped,
            self._client.spend(),
        )

    def _requests(self, level: int, number: int) -> list[_Sent]:
        plan = self._plan
        wanted = min(math.ceil(number / plan.per_request), plan.max_requests_per_level - self._sent[level])
        requests = []
        for _ in range(wanted):
            place = self._sent[level]
            self._sent[level] += 1
            family = plan.families[place % len(plan.families)]
            model = self._models[(place // len(plan.families) + place + level) % len(self._models)]
            tokens = 100 + plan.question_tokens * plan.per_request
            seed = plan.seed * 1000 + place
            request = ask_for_questions(model, level, family, FAMILIES[family], plan.per_request, seed, tokens)
            requests.append(_Sent(level, family, request))
        return requests

    async def _one(self, sent: _Sent) -> FrontierError | None:
        """Send one request and verify its candidates. Errors are returned, so that the rest of the round continues."""
        try:
            answer = await self._client.ask(sent.request)
        except FrontierStopError as error:
            return error
        except ModelUnavailableError as error:
            self._unavailable[sent.request.model] = str(error)
            return error
        except FrontierError as error:
            self._rejected[f"no reply ({type(error).__name__})"] += 1
            return error
        parsed = parse_questions(answer.text, self._plan.per_request)
        self._rejected.update(parsed.rejected)
        if any(self._client.scrub(part) != part for one in parsed.candidates for part in one.model_dump().values()):
            self._rejected["the reply holds the key"] += len(parsed.candidates)
            return None
        self._tried[sent.request.model] += len(parsed.rejected) + len(parsed.candidates)
        checked = await asyncio.gather(*(self._verify(sent.request.model, one) for one in parsed.candidates))
        stop = None
        for candidate, result in zip(parsed.candidates, checked, strict=True):
            if isinstance(result, FrontierStopError):
                stop = result
            elif isinstance(result, Unverified):
                self._rejected[result.reason] += 1
            else:
                self._verified[sent.request.model] += 1
                self._found[sent.level].append(_question(sent, answer, candidate, result, len(parsed.candidates)))
        return stop

    async def _verify(self, author: str, candidate: QuestionCandidate) -> Verified | Unverified | FrontierStopError:
        result: Verified | Unverified = Unverified("no check could tell", unclear=True)
        for check in self._plan.checks:
            if check == "program" and self._program is not None:
                result = await self._program.verify(candidate)
            elif check == "agreement" and self._agreement is not None:
                try:
                    result = await self._agreement.verify(author, candidate)
                except FrontierStopError as error:
                    return error
            if isinstance(result, Verified) or not result.unclear:
                return result
        return result

    def _keep(self) -> None:
        """Deduplicate all verified questions over all levels, in the order of the requests."""
        order = [
            question
            for level in sorted(self._found)
            for question in sorted(self._found[level], key=lambda q: (q.provenance.seed, q.provenance.name))
        ]
        unique = deduplicate(order, self._avoid)
        for reason in ("repeated", "near", "contradictory", "avoided"):
            self._rejected.pop(f"duplicate: {reason}", None)
            if number := getattr(unique, reason):
                self._rejected[f"duplicate: {reason}"] = number
        for level in self.kept:
            self.kept[level] = [question for question in unique.kept if question.level == level]

    def _leave_out(self) -> str:
        """Drop models that are not served or never verified; return the reason to stop if none is left, else ""."""
        for model in list(self._models):
            if model in self._unavailable:
                self._models.remove(model)
                self._rejected[f"{model} left out: {self._unavailable[model]}"] = 1
            elif self._tried[model] >= self._plan.give_up_after and not self._verified[model]:
                self._models.remove(model)
                self._rejected[f"{model} left out: none of its first {self._tried[model]} candidates verified"] = 1
        return "" if self._models else "every model was left out: none is served and has had an answer verified"


def _question(sent: _Sent, answer: Answer, candidate: QuestionCandidate, verified: Verified, share: int) -> Question:
    provenance = Provenance(
        source="frontier",
        name=sent.request.model,
        seed=sent.request.seed,
        settings=answer.digest,
        verified_by=verified.verified_by,
        cost_usd=answer.cost_usd / share + verified.cost_usd,
    )
    program = candidate.program if verified.check == "program" else ""
    text, reply = candidate.question.strip(), candidate.answer.strip()
    return Question(sent.level, sent.family, text, reply, provenance, verified.check, program)
