"""Verification of candidate questions: the candidate's program computes its answer, or two other models agree on it.

**Does not cover**: a program shows that the answer follows from the program, not that the program matches the question;
both come from one author. Agreement shows that three models give the same answer, which may still be wrong. Either way
the answer is what a careful reader of the same training data would give.
"""

import ast
import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from forge_resources.frontier.client import FrontierClient
from forge_resources.frontier.errors import FrontierError, FrontierStopError, ModelUnavailableError
from forge_resources.frontier.questions import QuestionCandidate, ask_for_answer, parse_answer
from training_core.tasks.questions.question import normalise_answer
from training_core.tasks.sandbox import Limits, Program, Sandbox

Checked = Literal["program", "agreement"]
PROGRAM_LIMITS = Limits(seconds=5.0, memory_bytes=64 << 20, output_bytes=4096, processes=16)
_COMPUTES = (
    ast.BinOp,
    ast.Compare,
    ast.BoolOp,
    ast.For,
    ast.While,
    ast.comprehension,
    ast.Subscript,
    ast.IfExp,
    ast.If,
)
_CHOOSES = (ast.Compare, ast.BoolOp, ast.Subscript, ast.IfExp, ast.If)


@dataclass(frozen=True, slots=True)
class Verified:
    """The check that confirmed a candidate's answer, the models that did, and the cost."""

    check: Checked
    verified_by: tuple[str, ...] = ()
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Unverified:
    """The reason why a candidate is not kept. `unclear`: this check cannot decide, and another one may."""

    reason: str
    unclear: bool = False


class ProgramCheck:
    """Runs candidates' programs in `sandbox`, one at a time."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._turn = asyncio.Lock()

    async def verify(self, candidate: QuestionCandidate) -> Verified | Unverified:
        """Verify that the candidate's program computes its answer.

        Raises:
            SandboxUnavailableError: when the isolation fails.
        """
        if not candidate.program.strip():
            return Unverified("no program", unclear=True)
        if not computes(candidate.program, candidate.question, candidate.answer):
            return Unverified("the program states the answer and computes nothing", unclear=True)
        async with self._turn:
            outcome = await asyncio.to_thread(self._sandbox.run, Program(candidate.program), PROGRAM_LIMITS)
        if outcome.status == "unsupported":
            return Unverified("the sandbox cannot run the program", unclear=True)
        if outcome.status != "ok":
            return Unverified(f"the program ends with {outcome.status}")
        if not outcome.stdout.strip() or normalise_answer(outcome.stdout) != normalise_answer(candidate.answer):
            return Unverified("the program computes another answer")
        return Verified("program")


class AgreementCheck:
    """Asks two other models that are not in `unavailable` (model -> reason; extended here).

    `asked` and `agreed` count for each model how often it answered and how often it agreed.

    Raises:
        ValueError: with fewer than three models.
    """

    def __init__(self, client: FrontierClient, unavailable: dict[str, str], max_tokens: int, seed: int) -> None:
        models = client.config.models
        if len(models) < 3:
            raise ValueError(
                f"agreement takes an author and two other models, got {len(models)} models: name three or more, or "
                "verify by program alone"
            )
        self._client = client
        self._models = models
        self._unavailable = unavailable
        self._max_tokens = max_tokens
        self._seed = seed
        self.asked: Counter[str] = Counter()
        self.agreed: Counter[str] = Counter()

    async def verify(self, author: str, candidate: QuestionCandidate) -> Verified | Unverified:
        """Verify that the next two models after the author, asked without seeing its answer, both give the same one.

        Raises:
            FrontierStopError: when no further request can be sent.
        """
        place = self._models.index(author)
        others = (*self._models[place + 1 :], *self._models[:place])
        judges = tuple(model for model in others if model not in self._unavailable)[:2]
        if len(judges) < 2:
            return Unverified("fewer than two other models are available", unclear=True)
        solutions = await asyncio.gather(*(self._solve(judge, candidate.question) for judge in judges))
        expected = normalise_answer(candidate.answer)
        for judge, (answer, _) in zip(judges, solutions, strict=True):
            if answer is not None:
                self.asked[judge] += 1
                self.agreed[judge] += normalise_answer(answer) == expected
        if any(answer is None for answer, _ in solutions):
            return Unverified("another model gave no usable answer")
        if any(normalise_answer(answer or "") != expected for answer, _ in solutions):
            return Unverified("another model disagrees")
        return Verified("agreement", judges, math.fsum(cost for _, cost in solutions))

    async def _solve(self, model: str, question: str) -> tuple[str | None, float]:
        try:
            answer = await self._client.ask(ask_for_answer(model, question, self._seed, self._max_tokens))
        except FrontierStopError:
            raise
        except ModelUnavailableError as error:
            self._unavailable[model] = str(error)
            return None, 0.0
        except FrontierError:
            return None, 0.0
        return parse_answer(answer.text), answer.cost_usd


def computes(program: str, question: str, answer: str) -> bool:
    """Return whether a program does more than state the answer.

    It must calculate, compare or select; and if the answer is a constant in it, that constant must also appear in the
    question or be selected by a condition.
    """
    try:
        nodes = list(ast.walk(ast.parse(program)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # not valid Python: running it in the sandbox gives the precise reason
    if not any(isinstance(node, _COMPUTES) for node in nodes):
        return False
    expected = normalise_answer(answer)
    constants = {normalise_answer(str(n.value)) for n in nodes if isinstance(n, ast.Constant)}
    if expected not in constants or any(isinstance(node, _CHOOSES) for node in nodes):
        return True
    return expected in {normalise_answer(word) for word in question.replace("?", " ").split()}
