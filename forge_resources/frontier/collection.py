"""Collects verified questions for every level: asks, parses, verifies, drops duplicates, and accounts for the rest.

It goes in rounds. Which requests a round sends depends only on the plan and on the answers before it, so a run that was
killed and is started again finds the answers it paid for and goes on where it was.
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

_SILENCE = 3  # requests in a row, whole rounds of them, after which a server counts as silent


class QuestionPlan(BaseModel):
    """How many questions of which levels and families are wanted, and how they are verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[int, ...] = Field(tuple(LEVELS), min_length=1, description="Levels to ask for")
    families: tuple[str, ...] = Field(tuple(FAMILIES), min_length=1, description="Families, in turn within a level")
    per_level: int = Field(50, ge=1, le=10_000, description="Verified questions wanted at each level")
    per_request: int = Field(4, ge=1, le=20, description="Questions asked for in one request")
    checks: tuple[Checked, ...] = Field(
        ("program", "agreement"), min_length=1, description="Tried in this order; the next where one cannot tell"
    )
    max_requests_per_level: int = Field(100, ge=1, le=1000, description="Requests for questions at one level, at most")
    give_up_after: int = Field(
        24, ge=1, description="Candidates of a model without a verified one, then it is left out"
    )
    question_tokens: int = Field(400, ge=50, le=4000, description="Most tokens of one question with its program")
    answer_tokens: int = Field(600, ge=50, le=8000, description="Most tokens of another model's answer")
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
    """What was collected. All of it is on disk: asking again costs nothing.

    rejected: candidates and replies that were not kept, by reason. stopped: why the plan was not filled; empty when it
    was. judged: for each model how often it answered another one's question, and how often it agreed.
    """

    questions: tuple[Question, ...]
    rejected: dict[str, int]
    judged: dict[str, tuple[int, int]]
    stopped: str
    spend: Spend

    def describe(self) -> str:
        """What was kept, rejected and spent, in words."""
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
    """Ask the client's models in turn until every level has its questions, each one verified.

    What stops the asking (no credit, the cap, a full disk, a server that does not answer, models that are always
    wrong) ends in a collection with what was earned and the reason in `stopped`.

    sandbox: where programs run; needed when `plan.checks` holds "program". avoid: prompts that must not come.

    Raises:
        ValueError: when a check cannot be made: no sandbox, or fewer than three models.
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
    """A request for questions, and where it belongs."""

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
        self._models = list(client.config.models)  # those not left out
        self._unanswered = 0  # requests since the server last answered
        self._tried: Counter[str] = Counter()
        self._verified: Counter[str] = Counter()
        self._sent: Counter[int] = Counter()
        self._found: defaultdict[int, list[Question]] = defaultdict(list)
        self._rejected: Counter[str] = Counter()
        self.kept: dict[int, list[Question]] = {level: [] for level in plan.levels}

    def missing(self) -> dict[int, int]:
        """How many questions each level lacks."""
        lacks = {level: self._plan.per_level - len(kept) for level, kept in self.kept.items()}
        return {level: number for level, number in lacks.items() if number > 0}

    async def round(self, missing: dict[int, int]) -> str:
        """Send the requests that could fill what is missing; return why there should be no further round, if so.

        Raises:
            FrontierStopError: when no further request can be sent; what was verified is kept first.
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
        """What there is now."""
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
        """Ask once and verify what comes. An error is returned, so that the others of the round go on."""
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
        """Drop duplicates among everything that was verified, over all levels, in the order of the requests."""
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
        """Leave out models that are not served or whose candidates never verify; say why to stop when none is left."""
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
