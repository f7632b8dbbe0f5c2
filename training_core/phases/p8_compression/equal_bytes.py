"""The control of equal bytes: an n-gram model packed into as many bytes as the file has, on the same test documents."""

from __future__ import annotations

import math

import torch

from training_core.evaluation.intervals import difference_of_rates
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.packed_counting import pack, unpack
from training_core.formats.artifact import read_artifact
from training_core.formats.tokenizer_codec import compact
from training_core.phase import PhaseContext

LN2 = math.log(2)


def compare_with_packed_ngrams(payload: bytes, context: PhaseContext) -> dict[str, float]:
    """Return the metrics of the n-gram model of the file's size, decoded from its bytes, and the file's margins.

    The margins are paired by document: on all test documents, and on those of each source.
    """
    data, tokenizer = context.training, context.training.tokenizer_json
    file = read_artifact(payload).model
    packed = pack(data.streams["text"], tokenizer, file.config.vocab_size, len(payload))
    counted = unpack(packed)
    test = context.report.text
    rival, own = counted.measure(test), measure_windows(file, test, context.batch_size)
    num_ngrams = sum(len(grams.keys) for grams in counted.levels)
    metrics = {
        "packed_ngram_bytes": float(len(packed)),
        "packed_ngrams": float(num_ngrams),
        "packed_ngram_bits_per_ngram": 8 * (len(packed) - len(compact(tokenizer))) / num_ngrams,
    }
    everything = {"": torch.arange(test.num_documents)} | {
        f"_on_{n}": where for n, where in context.report.sources.items()
    }
    for name, where in everything.items():
        num_bytes, tokens = own.num_bytes[where], own.tokens[where]
        nats, correct = rival["nats"][where], rival["correct"][where]
        below = difference_of_rates(nats / LN2, own.nats[where] / LN2, num_bytes)
        above = difference_of_rates(own.correct[where], correct, tokens)
        metrics |= below.metrics(f"margin_below_packed_ngram{name}")
        metrics |= above.metrics(f"accuracy_over_packed_ngram{name}")
        metrics[f"packed_ngram_bits_per_byte{name}"] = float(nats.sum() / num_bytes.sum()) / LN2
        metrics[f"packed_ngram_accuracy{name}"] = float(correct.sum() / tokens.sum())
    return metrics
