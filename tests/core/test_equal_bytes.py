"""The n-gram model of the file's bytes beside the file, and gates that stand for one gate a source."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training_core.evaluation.held_out import open_suite
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.packed_counting import pack, unpack
from training_core.formats.artifact import make_compressible, read_artifact, write_artifact
from training_core.gates import claim, for_each_part, judge
from training_core.nn.cognate import Cognate, CognateConfig
from training_core.phase import PhaseContext, SealedDataError
from training_core.phases.p8_compression.equal_bytes import compare_with_packed_ngrams
from training_core.phases.p8_compression.result import EqualBytesResult
from training_core.record import each, of, record


def test_the_file_is_compared_document_by_document_with_ngrams_in_as_many_bytes(small_data: dict[str, Path]) -> None:
    torch.manual_seed(3)
    shape = {"d_model": 24, "num_heads": 2, "d_ff": 32, "num_layers": 2, "num_core_layers": 2, "memory_layers": []}
    student = Cognate(CognateConfig(vocab_size=320, max_seq_len=320, num_persistent=0, **shape))  # type: ignore[arg-type]
    make_compressible(student, 0.5, "tensor")
    suite = open_suite(small_data["evaluation_suite"])
    last = torch.arange(3, suite.test.num_documents)
    context = PhaseContext(folders=small_data, suite=replace(suite, sources={"last": last}))
    payload = write_artifact(student, context.training.tokenizer_json, 0.5, "tensor")
    with pytest.raises(SealedDataError):
        compare_with_packed_ngrams(payload, context)
    context.fix(payload)
    metrics = compare_with_packed_ngrams(payload, context)
    result = record(EqualBytesResult, metrics)
    data = pack(context.training.streams["text"], context.training.tokenizer_json, 320, len(payload))
    rival = unpack(data).measure(suite.test)
    own = measure_windows(read_artifact(payload).model, suite.test, 8)
    assert result.packed_ngram_bytes == len(data) <= len(payload)
    bits = [float(nats.sum() / own.num_bytes.sum()) / math.log(2) for nats in (rival["nats"], own.nats)]
    assert result.packed_ngram_bits_per_byte == pytest.approx(bits[0])
    assert result.margin_below_packed_ngram.value == pytest.approx(bits[0] - bits[1])
    assert result.margin_below_packed_ngram.high < 0, "a random file is worse"
    more = (own.correct - rival["correct"])[last].sum() / own.tokens[last].sum()
    assert result.accuracy_over_packed_ngram_on["last"].value == pytest.approx(float(more))


def test_a_gate_of_every_part_is_judged_on_each_that_was_measured() -> None:
    margin = each(of(EqualBytesResult).margin_below_packed_ngram_on)
    template = claim("file", "beats_on_{}", margin.low, at_least=0.0, evidence="Margin on {}")
    assert template.metric == "margin_below_packed_ngram_on_{}_low"
    other = claim("file", "other", of(EqualBytesResult).packed_ngrams, at_least=1, evidence="")
    metrics = {"margin_below_packed_ngram_low": 9.0, "packed_ngrams": 4.0}
    for source, low in (("world", 0.2), ("own_text", -0.1)):
        metrics |= {f"margin_below_packed_ngram_on_{source}{end}": low for end in ("", "_low", "_high")}
    rows = for_each_part([template, other], metrics)
    assert [(row.name, judge(row, metrics).passed) for row in rows] == [
        ("beats_on_own_text", False), ("beats_on_world", True), ("other", True),
    ]  # fmt: skip
    assert rows[0].evidence == "Margin on own_text"
    (unmeasured,) = for_each_part([template], {"packed_ngrams": 1.0})
    assert not judge(unmeasured, {"packed_ngrams": 1.0}).passed, "what was not measured does not pass"
