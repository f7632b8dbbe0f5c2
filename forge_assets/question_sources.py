"""The frontier-model source of the question bank: questions bought from models, cached across runs."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from forge_resources.frontier import FrontierClient, FrontierConfig, FrontierStopError
from forge_resources.frontier.collection import Collection, QuestionPlan, collect_questions
from forge_resources.sandbox import open_sandbox
from training_core.reporting import Reporter
from training_core.tasks.questions.bank import Collected, QuestionBankConfig
from training_core.tasks.questions.question import Question
from training_core.tasks.sandbox import SandboxUnavailableError

_JUDGED_FROM = 3  # least number of models for verification by agreement; with fewer, only programs verify


def frontier_questions(
    config: QuestionBankConfig, folder: Path, reporter: Reporter, avoid: Sequence[str]
) -> tuple[Sequence[Question], Collected]:
    """Return verified questions from frontier models and an account of their collection; none for source "generators".

    folder: the cache of responses. A request answered before, even in a run that was killed, is not paid for again.
    avoid: prompts that must not occur among the questions.

    With the source "both", anything that stops the collection (a missing or wrong key, no credit, the cost cap, an
    unreachable server, no sandbox) ends it with the questions collected so far; `note` gives the reason.

    Raises:
        ValueError: for invalid settings; with the source "frontier", also if not every question was collected.
    """
    if config.source == "generators":
        return (), Collected()
    settings, plan = _settings(config), _plan(config)
    try:
        collection = asyncio.run(_collect(settings, plan, folder, reporter, avoid))
        questions, collected = collection.questions, _described(collection)
    except (FrontierStopError, SandboxUnavailableError, ModuleNotFoundError) as error:
        questions, collected = (), Collected(note=str(error))
    if config.source == "frontier" and collected.note:
        raise ValueError(
            f"frontier models gave {len(questions)} of {config.frontier_per_level * len(plan.levels)} questions: "
            f"{collected.note}. Fix that and run again (responses are cached in {folder}: a request is not paid for "
            'twice), ask for fewer (frontier_per_level), or set source to "both", which takes the rest from '
            "generators"
        )
    return questions, collected


async def _collect(
    settings: FrontierConfig, plan: QuestionPlan, folder: Path, reporter: Reporter, avoid: Sequence[str]
) -> Collection:
    with open_sandbox("auto") as sandbox:
        async with FrontierClient(settings, folder) as client:
            return await collect_questions(client, plan, reporter, sandbox, avoid)


def _settings(config: QuestionBankConfig) -> FrontierConfig:
    prices = config.frontier_prices
    return FrontierConfig(
        base_url=config.frontier_base_url,
        models=tuple(config.frontier_models),
        usd_per_million_tokens={
            model: list(prices[2 * number : 2 * number + 2]) for number, model in enumerate(config.frontier_models)
        },
        key_variable=config.frontier_key_variable,
        max_cost_usd=config.frontier_max_cost_usd,
        timeout_s=config.frontier_timeout_s,
        max_retries=config.frontier_retries,
        seed=config.seed,
    )


def _plan(config: QuestionBankConfig) -> QuestionPlan:
    several = len(config.frontier_models) >= _JUDGED_FROM
    return QuestionPlan(
        per_level=config.frontier_per_level,
        checks=("program", "agreement") if several else ("program",),
        seed=config.seed,
    )


def _described(collection: Collection) -> Collected:
    spend = collection.spend
    return Collected(
        spent_usd=spend.spent_usd,
        account=spend.describe(),
        note=collection.stopped,
        rejected=collection.rejected,
        judged=collection.judged,
    )
