"""The asset `corpus` made from a user's files: what makes it stale, what a bad record does, what the report counts."""

import json
from pathlib import Path

import dagster as dg
import pytest
import tiny_forge
from test_run_graph import actions, planned, run

from forge_assets.data import corpus, tokenizer
from forge_assets.graph_view import Forge
from forge_assets.ledger import collect
from forge_assets.report.cells import corpus_lines
from forge_resources.model_store import ModelStore
from tests.core.small_data import sentences


@pytest.fixture
def forge(instance: dg.DagsterInstance, store: ModelStore) -> Forge:
    resources = {"store": store, "tracking": tiny_forge.MlflowTracking(enabled=False)}
    definitions = dg.Definitions([corpus, tokenizer], resources=resources, executor=dg.in_process_executor)
    return Forge(definitions, instance, store, ())


def write(path: Path, *texts: str | None) -> None:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


def test_the_corpus_follows_its_files_and_the_report_counts(forge: Forge, tmp_path: Path) -> None:
    texts = sentences(300)
    write(tmp_path / "a.jsonl", *texts, *texts[:20], "short", None)
    settings = {"source": "files", "paths": [str(tmp_path / "*.jsonl")], "min_characters": 50, "on_error": "skip"}
    given = {"corpus": settings, "tokenizer": {"vocab_size": 320}}
    outcome, _ = run(forge, given | {"corpus": settings | {"on_error": "stop"}})
    assert outcome.made == []
    assert "a.jsonl, line 322: the text field 'text' is null" in " ".join(outcome.problems)

    outcome, _ = run(forge, given)
    assert outcome.made == ["corpus", "tokenizer"]
    ledger = collect(forge)
    assert ledger.corpus["dropped_repeated"] == 20
    assert sum(n for name, n in ledger.corpus.items() if name.startswith("documents_")) == 300
    (line,) = corpus_lines(ledger)
    assert line.startswith("corpus: documents: train 2")
    assert line.endswith("; left out: short 1, repeated 20, unreadable 1")

    assert actions(planned(forge, given)) == {"corpus": "keep", "tokenizer": "keep"}
    write(tmp_path / "b.jsonl", *sentences(30, seed=9))
    changed = planned(forge, given)
    assert actions(changed) == {"corpus": "make", "tokenizer": "make"}
    assert changed["corpus"].reason == f"its source {tmp_path / 'b.jsonl'} is new"
    run(forge, given)
    write(tmp_path / "b.jsonl", *sentences(31, seed=9))
    assert planned(forge, given)["corpus"].reason == f"its source {tmp_path / 'b.jsonl'} changed"
    run(forge, given)
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    gone = planned(forge, given)
    assert actions(gone) == {"corpus": "keep", "tokenizer": "keep"}
    assert "no file matches" in gone["corpus"].note
    assert "is kept" in gone["corpus"].note
