"""A model that follows a script: a list of texts for every prompt, separated by replies of a tool.

Its logits are 10 for the next token of the script and 0 for all others, so that greedy decoding follows the script.
After each text it waits until a tool's reply, whatever its content, has been inserted, and then continues with the next
text; without a reply, it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

REPLY_ENDS = "</out>"


class ScriptedModel(nn.Module):
    def __init__(self, tokenizer: Tokenizer, scripts: Mapping[str, Sequence[str]], max_seq_len: int = 512) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(max_seq_len=max_seq_len)
        self.tokenizer = tokenizer
        self.scripts = {tuple(tokenizer.encode(prompt).ids): list(script) for prompt, script in scripts.items()}

    def stream(self, rows: int) -> list[list[int]]:
        return [[] for _ in range(rows)]

    def step(self, tokens: Tensor, state: list[list[int]]) -> Tensor:
        logits = torch.zeros(len(state), self.tokenizer.get_vocab_size())
        for row, (token, fed) in enumerate(zip(tokens.tolist(), state, strict=True)):
            fed.append(token)
            logits[row, self._next(tuple(fed[1:]))] = 10.0
        return logits

    def _next(self, fed: tuple[int, ...]) -> int:
        prompt = next((each for each in self.scripts if fed[: len(each)] == each), None)
        if prompt is None:
            return 0
        written = fed[len(prompt) :]
        for text in self.scripts[prompt]:
            ids = tuple(self.tokenizer.encode(text).ids)
            if len(written) < len(ids):
                return ids[len(written)] if written == ids[: len(written)] else 0
            reply = self.tokenizer.decode(list(written[len(ids) :]))
            if REPLY_ENDS not in reply:
                return 0
            behind = 1 + next(
                n
                for n in range(len(ids), len(written))
                if REPLY_ENDS in self.tokenizer.decode(list(written[len(ids) : n + 1]))
            )
            written = written[behind:]
        return 0
