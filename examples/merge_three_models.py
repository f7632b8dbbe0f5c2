"""Merge three specialists of one tiny trunk by evolution, and print what the merge gains over the best of them.

    python examples/merge_three_models.py

It needs the core alone (no Dagster, download or GPU): 18 s of one CPU core, 21 to 33 s of wall time on a busy machine.
"""

import random
import tempfile
from pathlib import Path

import torch

from training_core.data.batches import TEXT_ONLY, TrainingData
from training_core.data.packing import TokenStream, encode, write_stream
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import cut_windows
from training_core.nn.cognate import ShapeConfig
from training_core.phases.p1_cognate.config import TrunkConfig, VariantConfig
from training_core.phases.p1_cognate.train import specialise, train_trunk
from training_core.phases.p2_evomerge.evolution import EvolutionConfig
from training_core.phases.p2_evomerge.merge_cognates import merge_cognates
from training_core.reporting import SilentReporter
from training_core.training.loop import TrainingConfig

TOPICS = {
    "weather": (("The wind", "A storm", "The rain", "Thick fog"), ("came from", "moved towards", "stayed over")),
    "kitchen": (("The cook", "A baker", "Her aunt", "The guest"), ("baked bread for", "brought soup to", "slept near")),
    "railway": (("The train", "An engine", "The guard", "A porter"), ("left for", "waited at", "arrived from")),
}
PLACES = ("the old harbour", "a green valley", "the northern hills", "two small towns")
SHAPE = ShapeConfig(d_model=64, num_layers=3, num_core_layers=2, num_heads=4, d_ff=160, memory_layers=[0])
TRUNK = TrainingConfig(steps=30, batch_size=8, seq_len=64, muon_lr=0.01, adamw_lr=0.004, grokfast_lambda=0.0)
SHORT = TRUNK.model_copy(update={"muon_lr": 0.005, "adamw_lr": 0.002})


def document(topic: str, draw: random.Random) -> str:
    """Five random sentences about a topic."""
    parts = (*TOPICS[topic], PLACES)
    return " ".join(f"{' '.join(draw.choice(part) for part in parts)}." for _ in range(5))


torch.set_num_threads(1)  # models this small gain nothing from more
draw, reporter = random.Random(0), SilentReporter()
topics = {topic: [document(topic, draw) for _ in range(150)] for topic in TOPICS}
mixed = [text for texts in zip(*topics.values(), strict=True) for text in texts]
tokenizer = train_tokenizer(TokenizerConfig(vocab_size=320), mixed[:300])
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)

    def stream(split: str, texts: list[str]) -> TokenStream:
        """The texts as packed tokens on disk."""
        write_stream(folder, split, encode(tokenizer, texts), shard_tokens=2**20)
        return TokenStream.open(folder, split)

    # 1. Text of all topics in three parts: to train on, to choose merges by, and to report on.
    everything = TrainingData({"text": stream("all", mixed[:300])}, tokenizer.to_str())
    validation = cut_windows(stream("validation", mixed[300:375]), max_tokens=4000, length=64)
    test = cut_windows(stream("test", mixed[375:]), max_tokens=4000, length=64)
    # 2. A trunk, trained briefly, and three models that branch from it, each trained more on one topic.
    trunk, _ = train_trunk(TrunkConfig(shape=SHAPE, training=TRUNK, mix=TEXT_ONLY), everything, reporter)
    parents = {}
    for topic, texts in topics.items():
        data = TrainingData({"text": stream(topic, texts[:100] + mixed[:300:2])}, tokenizer.to_str())
        parents[topic], _ = specialise(trunk, "speed", VariantConfig(training=SHORT, mix=TEXT_ONLY), data, reporter)
    # 3. Evolution: linear, SLERP, TIES and DARE merges and mutants of them, the fittest on validation text survive.
    merged, metrics = merge_cognates(trunk, parents, EvolutionConfig(generations=4), validation, 16, reporter)
# 4. The choice was made on validation text, so the test text says whether the gain is real.
print(f"Bits per byte on text of all topics (less is better), {metrics['merge_evaluations']:.0f} models tried:")
print("                validation   test")
measured = {}
for name, model in {"trunk": trunk, **parents, "merge": merged}.items():
    measured[name] = [measure_windows(model, text, batch_size=16).bits_per_byte() for text in (validation, test)]
    print(f"{name:16}{measured[name][0]:10.4f}{measured[name][1]:7.4f}")
for index, split in enumerate(("validation", "test")):
    best = min(measured[topic][index] for topic in parents)
    print(f"Gain over the best parent on {split} text: {1 - measured['merge'][index] / best:.1%}")
