"""The B-cycle: the model proposes prompts, and the one with which it answers best is baked in to half strength.

    propose    sample prompts from the model after END_OF_TEXT alone: no template, no list of traits
    score      mean probability of the correct answers' tokens on validation questions, with the proposal in front
    bake       replies of the model, prompted with the winner, to lines of text in conversations; questions and repairs
               are rehearsal data
    score      the same mean without any prompt

Here a persona means only this: the effect of a sentence in front on accuracy and style, and how many turns it lasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch

from training_core.data.batches import TEXT_ONLY
from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.distill.trajectories import sample_continuations
from training_core.nn.cognate import Cognate
from training_core.nn.ternary import inference_copy
from training_core.phases.p6_baking.context import (
    SEPARATOR,
    Baked,
    CycleContext,
    NothingToBakeError,
    Trajectories,
    as_json,
    from_json,
)
from training_core.phases.p6_baking.exhibit import ProposedPrompt
from training_core.phases.p6_baking.tools import ToolCycle
from training_core.record import Estimate
from training_core.tasks.questions.likelihood import example_of, measure_likelihoods
from training_core.tasks.questions.measurement import spread
from training_core.tasks.questions.question import Question
from training_core.text.sampling import continue_rows
from training_core.training.loop import step_generator

REPLY_CUE = "\nAnswer:"
HISTORY_TURNS = (0, 2, 4)
LEAST_WORDS = 2  # shorter proposals are discarded
TRIES = 4  # most rounds of sampling, because some proposals are discarded


class PersonaCycle:
    """Iterations of the B-cycle. `proposals` collects the proposed prompts and their scores for the exhibit."""

    name: Literal["persona"] = "persona"

    def __init__(self, material: CycleContext, tools: ToolCycle) -> None:
        self.material, self.tools = material, tools
        self.winners: list[str] = []
        self.proposals: list[ProposedPrompt] = []
        config = material.config
        self.validation = spread(
            material.context.selection.questions, config.persona.scored_questions, material.levels_in_reach
        )
        self._check_length(self.validation)
        material.context.refuse_unless(lambda test: self._check_length(self._asked(test)))

    @cached_property
    def test(self) -> list[Question]:
        """The test questions of the levels in reach."""
        return self._asked(self.material.context.report.questions)

    def _asked(self, held_out: Sequence[Question]) -> list[Question]:
        return [q for q in self.material.questions(held_out) if q.level in self.material.levels_in_reach]

    def _check_length(self, questions: Sequence[Question]) -> None:
        """Check, before anything is trained, that a prompt fits max_seq_len together with all that may follow it."""
        config, material = self.material.config, self.material
        longest, prompt = material.parent.config.max_seq_len, config.persona.proposal_tokens + 1
        examples = [example_of(question, material.context.tokenizer) for question in questions]
        line = config.measurement.line_tokens + len(material.context.tokenizer.encode(SEPARATOR + REPLY_CUE).ids)
        turn = line + config.measurement.reply_tokens
        most_turns = max(HISTORY_TURNS)
        lengths = {
            "a question with its answer": max(len(e.prompt) + len(e.completion) for e in examples),
            f"{most_turns} turns and a reply of persona_tokens": most_turns * turn
            + line
            + config.persona.persona_tokens,
            f"{config.measurement.turns} turns of line_tokens and reply_tokens": config.measurement.turns * turn,
            "given_tokens and style_tokens": config.persona.given_tokens + config.measurement.style_tokens,
        }
        for name, length in lengths.items():
            if prompt + length > longest:
                raise ValueError(
                    f"a prompt of up to {prompt} tokens and {length} of {name} exceed max_seq_len = {longest}: lower "
                    "what is named, or proposal_tokens"
                )
        window = material.context.selection.text.inputs.shape[1]
        if max(config.measurement.line_tokens, config.persona.given_tokens) > window:
            raise ValueError(
                f"line_tokens = {config.measurement.line_tokens} and given_tokens = "
                f"{config.persona.given_tokens} are taken from held-out "
                f"windows of {window} tokens: lower them"
            )

    def score(self, model: Cognate, prompt: str = "") -> Estimate:
        """Return the mean probability of the correct answers' tokens on validation questions, after `prompt`."""
        return measure_likelihoods(model, self.material.context.tokenizer, self.validation, prompt).mean_probability()

    def iterate(self, number: int, model: Cognate, target: float) -> Baked:
        """Run one iteration, starting from the current model.

        Raises:
            NothingToBakeError: when the model proposes nothing, or its best proposal has no effect on it.
        """
        material = self.material
        teacher = inference_copy(model)
        proposed = material.cache.cached(f"proposals {number}", lambda: self._propose(number, teacher))["proposals"]
        self.proposals += [ProposedPrompt(iteration=number, **proposal) for proposal in proposed]
        if not proposed:
            raise NothingToBakeError("the model proposed no prompt that says anything")
        chosen = next(proposal for proposal in proposed if proposal["chosen"])
        prompt = chosen["text"]
        prompt_ids = tuple(material.context.tokenizer.encode(prompt).ids)
        trajectories = from_json(
            material.cache.cached(
                f"trajectories {number}", lambda: as_json(self._trajectories(number, teacher, prompt_ids))
            )
        )
        staying = material.staying(self.tools.taught() if self.tools.examples else ())
        baked = material.bake(
            number, self.name, prompt, prompt_ids, teacher, model, trajectories, target, staying, model, model
        )
        self.winners.append(prompt)
        return baked

    def _propose(self, number: int, teacher: Cognate) -> Mapping[str, Any]:
        """Score newly sampled prompts and earlier winners, and mark the best as chosen."""
        config, tokenizer = self.material.config, self.material.context.tokenizer
        generator = step_generator(config.training.seed, -7_000_000 - number)
        candidates = list(dict.fromkeys(self.winners))
        wanted = len(candidates) + config.persona.proposals
        for _ in range(TRIES):
            drawn = continue_rows(
                teacher,
                [()] * config.persona.proposals,
                config.persona.proposal_tokens,
                generator,
                temperature=config.persona.proposal_temperature,
            )
            for row in drawn:
                text = " ".join(tokenizer.decode([i for i in row.ids if i != END_OF_TEXT_ID]).split())
                prompt = text + SEPARATOR
                fits = len(tokenizer.encode(prompt).ids) <= config.persona.proposal_tokens + 1
                if len(text.split()) >= LEAST_WORDS and fits and prompt not in candidates:
                    candidates.append(prompt)
            if len(candidates) >= wanted:
                break
        candidates = candidates[:wanted]
        scores = [self.score(teacher, prompt) for prompt in candidates]
        best = max(range(len(candidates)), key=lambda i: scores[i].value, default=-1)
        return {
            "proposals": [
                {"text": text, "score": score.document(), "chosen": i == best}
                for i, (text, score) in enumerate(zip(candidates, scores, strict=True))
            ]
        }

    def _trajectories(self, number: int, teacher: Cognate, prompt_ids: Sequence[int]) -> Trajectories:
        """Sample the prompted model's replies in conversations.

        Lines come from training text, then from validation text for setting and for measuring the strength.
        """
        config = self.material.config
        generator = step_generator(config.training.seed, -8_000_000 - number)
        split = ["train"] * config.strength.num_trajectories + ["validation"] * (
            2 * config.strength.held_out_trajectories
        )
        histories = self._histories(split, teacher, prompt_ids, generator)
        prefixes = self._lines(split, generator)
        sampling = config.baking().model_copy(update={"max_tokens": config.persona.persona_tokens})
        drawn = sample_continuations(teacher, prompt_ids, prefixes, sampling, generator, histories=histories)
        first, second = (
            config.strength.num_trajectories,
            config.strength.num_trajectories + config.strength.held_out_trajectories,
        )
        return Trajectories(tuple(drawn[:first]), tuple(drawn[first:second]), tuple(drawn[second:]))

    def _histories(
        self, split: Sequence[str], teacher: Cognate, prompt_ids: Sequence[int], generator: torch.Generator
    ) -> list[list[int]]:
        """Return the earlier turns before the prompt: alternately none, two or four, each a line and a prompted reply.

        Without them, the effect would not be learned at later turns of a conversation.
        """
        sampling = self.material.config.baking().model_copy(
            update={"max_tokens": self.material.config.measurement.reply_tokens}
        )
        turns = [HISTORY_TURNS[place % len(HISTORY_TURNS)] for place in range(len(split))]
        lines = self._lines([of for of, many in zip(split, turns, strict=True) for _ in range(many)], generator)
        replies = sample_continuations(teacher, prompt_ids, lines, sampling, generator)
        said = iter([[*reply.prefix, *(i for i in reply.continuation if i != END_OF_TEXT_ID)] for reply in replies])
        return [[token for _ in range(many) for token in next(said)] for many in turns]

    def _lines(self, split: list[str], generator: torch.Generator) -> list[list[int]]:
        """Return a user line for each entry of `split`: a few tokens of text of that split, and the cue for a reply."""
        before, behind = (self.material.context.tokenizer.encode(text).ids for text in (SEPARATOR, REPLY_CUE))
        of_split = {
            name: iter(self.text(split.count(name), name, self.material.config.measurement.line_tokens, generator))
            for name in dict.fromkeys(split)
        }
        return [[*before, *next(of_split[name]), *behind] for name in split]

    def conversations(self, count: int, turns: int, generator: torch.Generator) -> list[list[list[int]]]:
        """Return the user lines, from test text, for each turn of `count` conversations."""
        lines = self._lines(["test"] * (count * turns), generator)
        return [lines[place::count] for place in range(count)]

    def text(self, count: int, split: str, tokens: int, generator: torch.Generator) -> list[list[int]]:
        """Draw `count` random pieces of `tokens` ids from a split; held-out text is that of the evaluation suite."""
        if split == "train":
            return [
                list(map(int, row)) for row in self.material.context.training.batch(TEXT_ONLY, count, tokens, generator)
            ]
        held_out = self.material.context
        windows = (held_out.selection if split == "validation" else held_out.report).text.inputs
        rows = torch.randint(len(windows), (count, 1), generator=generator)
        places = torch.randint(windows.shape[1] - tokens + 1, (count, 1), generator=generator)
        return [list(map(int, row)) for row in windows[rows, places + torch.arange(tokens)]]
