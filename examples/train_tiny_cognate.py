"""Train a tiny Cognate from random weights on stories made here, and let it continue one.

    python examples/train_tiny_cognate.py

It needs the core alone (no Dagster, download or GPU): 18 s of one CPU core.
"""

import itertools
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from training_core.data.batches import TEXT_ONLY, TrainingData
from training_core.data.packing import TokenStream, encode, write_stream
from training_core.data.tokenizer import TokenizerConfig, train_tokenizer
from training_core.evaluation.language_modeling import measure_windows
from training_core.evaluation.windows import cut_windows
from training_core.nn.cognate import Cognate, CognateConfig, ShapeConfig, count_parameters
from training_core.phases.p1_cognate.config import TrunkConfig
from training_core.phases.p1_cognate.train import train_trunk
from training_core.reporting import SilentReporter
from training_core.text.generation import generate
from training_core.training.loop import TrainingConfig

NAMES, COLOURS, THINGS = ("Anna", "Ben", "Cleo", "Dario"), ("red", "green", "yellow"), ("apples", "kites", "stones")
SHAPE = ShapeConfig(d_model=64, num_layers=3, num_core_layers=2, num_heads=4, d_ff=160, memory_layers=[0])
TRAINING = TrainingConfig(steps=300, batch_size=4, seq_len=128, muon_lr=0.02, adamw_lr=0.01, grokfast_lambda=0.0)


def stories() -> list[str]:
    """All 756 stories, shuffled. The last sentence follows from the first: one thing less, the rest as it was."""
    told = [
        f"{name} has {n} {colour} {thing}. {name} gives one to {other}. Now {name} has {n - 1} {colour} {thing}."
        for name, other, colour, thing, n in itertools.product(NAMES, NAMES, COLOURS, THINGS, range(3, 10))
        if name != other
    ]
    random.Random(0).shuffle(told)
    return told


class PrintLoss(SilentReporter):
    """Prints the loss now and then; any `Reporter` can listen to a training run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Called every ten steps or so with what the training measured."""
        if step % 50 == 0 or step == TRAINING.steps - 1:
            loss, accuracy = values["trunk/cross_entropy"], values["trunk/accuracy"]
            print(f"step {step:4d}   loss {loss:.3f} nats per token   next token right {accuracy:.0%}")


torch.set_num_threads(1)  # a model this small gains nothing from more
# 1. Documents: 650 to learn from, 106 that the model never sees.
documents = stories()
train, unseen = documents[:650], documents[650:]
# 2. A byte-level BPE tokenizer, and the documents as packed tokens on disk.
tokenizer = train_tokenizer(TokenizerConfig(vocab_size=320), train)
with tempfile.TemporaryDirectory() as folder:
    for split, texts in {"train": train, "held_out": unseen}.items():
        write_stream(Path(folder), split, encode(tokenizer, texts), shard_tokens=2**20)
    data = TrainingData({"text": TokenStream.open(Path(folder), "train")}, tokenizer.to_str())
    held_out = cut_windows(TokenStream.open(Path(folder), "held_out"), max_tokens=4000, length=128)
    # 3. Training: shape, optimizer and data mix are nested sections of one configuration.
    config = TrunkConfig(shape=SHAPE, training=TRAINING, mix=TEXT_ONLY)
    torch.manual_seed(0)
    untrained = Cognate(CognateConfig(vocab_size=tokenizer.get_vocab_size(), **SHAPE.model_dump()))
    print(f"A Cognate of {count_parameters(untrained):,} parameters: Titans-MAG blocks with a neural memory.")
    model, result = train_trunk(config, data, PrintLoss())
    # 4. Bits per byte: what the model needs to encode a byte of unseen text, whatever its tokenizer.
    before, after = (measure_windows(m, held_out, batch_size=16).bits_per_byte() for m in (untrained, model))
print(f"Held-out stories: {before:.2f} bits per byte before training, {after:.2f} after {result.tokens:,} tokens.")
# 5. Sampling: the model reads the beginning of an unseen story and streams the rest, one token at a time.
prompt = unseen[0].partition(" Now")[0] + " Now"
print(f"{prompt} ...{''.join(generate(model, tokenizer, prompt, max_tokens=24, temperature=0.0))}")
