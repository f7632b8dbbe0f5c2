"""Gates and claims of phase 8."""

from __future__ import annotations

from training_core.evaluation.result import SuiteResult
from training_core.gates import LEAST_ACCURACY, LEAST_BITS, claim, gate, learned, learned_each_source, validity
from training_core.phases.p8_compression.result import CompressedResult
from training_core.record import each, of

SUITE = of(SuiteResult)
RESULT = of(CompressedResult)

GATES = {
    "compressed_model": (
        *validity("compressed_model"),
        learned("compressed_model"),
        learned_each_source("compressed_model"),
        gate(
            "compressed_model",
            "fits",
            SUITE.bytes_on_disk,
            at_most={"nano": 110000, "mini": 520000, "forge_25m": 400000},
            evidence="Size of model.forge on disk in bytes",
        ),
        gate(
            "compressed_model",
            "retains",
            SUITE.retention_to_best_parent.low,
            at_least=0.84,
            evidence="Retention of next-token accuracy on test documents, lower bound of the paired 95 % CI",
            against="the expert model",
        ),
        gate(
            "compressed_model",
            "beats_packed_ngram",
            RESULT.equal_bytes.margin_below_packed_ngram.low,
            at_least=LEAST_BITS,
            evidence="Bits per byte below it on test documents, lower bound of the paired 95 % CI",
            against="the best n-gram model in as many bytes",
        ),
        claim(
            "compressed_model",
            "beats_packed_ngram_on_{}",
            each(RESULT.equal_bytes.margin_below_packed_ngram_on).low,
            smallest=LEAST_BITS,
            evidence="Bits per byte below it on test documents of {}, lower bound of the paired 95 % CI",
            against="the best n-gram model in as many bytes",
        ),
        claim(
            "compressed_model",
            "experts_survive",
            RESULT.file_experts_gain.low,
            smallest=LEAST_ACCURACY,
            evidence="Macro-averaged accuracy gain from the file's experts, lower bound of the paired 95 % CI",
            against="the file without its experts",
        ),
        claim(
            "compressed_model",
            "seed_ratio",
            SUITE.bits_per_parameter,
            at_most=0.128,
            evidence="Bits on disk per parameter of the trained model",
        ),
    ),
}
