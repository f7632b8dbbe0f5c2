"""Attempts at repairs: a model writes line edits, a tool applies them and runs the visible test, hidden tests grade.

    Issue: the sum
    1 def f(a, b):
    2  return a - b
    Fix:<fix>2 return a + b</fix><out>ok</out>

The model generates `<fix>LINE CODE</fix>`; the tool inserts its reply after it, which is masked from the loss. Every
fix is applied to the original program. At most two fixes are answered, and the last one counts. Only the sandbox
produces replies: if the model itself writes "<out>ok</out>", nothing was run and nothing counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from training_core.data.tokenizer import END_OF_TEXT_ID
from training_core.nn.cognate import Cognate
from training_core.tasks.questions.tools import ToolCall
from training_core.tasks.repair.edits import PatchError, apply_edit, last_fix, parse_fix
from training_core.tasks.repair.grading import LIMITS, Grade, SandboxRunner, grade
from training_core.tasks.repair.instances import Instance
from training_core.tasks.repair.micro_repositories import gold_text, instance_text
from training_core.tasks.sandbox import Limits, Sandbox
from training_core.text.sampling import continue_rows

TOOL = "fix"
MOST_FIXES = 2
MAX_TOKENS = 56  # enough for two fixes and their replies with the nano tokenizer
DOES_NOT_APPLY = "does not apply"
_REPLIES = {"passed": "ok", "wrong": "fail", "error": "fail"}


@dataclass(frozen=True, slots=True)
class RepairAttempt:
    """A model's completion for an instance, the tool's replies, and the grade by hidden tests.

    prompt_ids: preamble and instance, without the leading END_OF_TEXT. completion_ids: the completion, including its
    END_OF_TEXT if one was sampled. own: which completion tokens the model generated. text: the completion. calls: the
    fixes that were answered, in order; `status` says why one did not pass.
    """

    instance: Instance
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    own: tuple[bool, ...]
    text: str
    calls: tuple[ToolCall, ...]
    grade: Grade

    @property
    def resolved(self) -> bool:
        """Whether all FAIL_TO_PASS and PASS_TO_PASS tests pass."""
        return self.grade.resolved


def answer_fix(instance: Instance, written: str, sandbox: Sandbox, limits: Limits = LIMITS) -> tuple[ToolCall, str]:
    """Apply a fix ("LINE CODE") and run the visible test; return the call and the reply to insert after it.

    Raises:
        SandboxUnavailableError: when the isolation fails. The written text itself never raises.
    """
    try:
        source = apply_edit(instance.source, parse_fix(written))
    except PatchError as error:
        call = ToolCall(TOOL, written, DOES_NOT_APPLY, str(error))
    else:
        verdict = sandbox.check(source, instance.visible_test, limits)
        output = _REPLIES.get(verdict.status, verdict.status.replace("_", " "))
        status = "ok" if verdict.passed else f"{verdict.status}: {verdict.detail}"
        call = ToolCall(TOOL, written, output, status)
    return call, f"<out>{call.output}</out>"


def repaired_files(instance: Instance, calls: Sequence[ToolCall]) -> dict[str, str] | None:
    """Return the files after the last fix: unchanged if there is no fix, None if it does not apply."""
    if not calls:
        return dict(instance.files)
    try:
        return {instance.path: apply_edit(instance.source, parse_fix(calls[-1].input))}
    except PatchError:
        return None


def attempt_repairs(
    model: Cognate,
    tokenizer: Tokenizer,
    instances: Sequence[Instance],
    sandbox: Sandbox,
    generator: torch.Generator,
    *,
    preamble: str = "",
    temperature: float = 0.0,
    max_tokens: int = MAX_TOKENS,
) -> list[RepairAttempt]:
    """Return one attempt at each instance, in the order given, decoded as one batch.

    preamble: text prepended to every instance. max_tokens: length of each completion, tool replies included.

    Raises:
        ValueError: for no instances, or a preamble, instance and completion longer than max_seq_len.
        SandboxUnavailableError: when the isolation of the tool or of the hidden tests fails.
    """
    prompts = [_prompt(model, tokenizer, preamble, instance, max_tokens) for instance in instances]
    closing = {number for token, number in tokenizer.get_vocab().items() if ">" in token}
    calls: list[list[ToolCall]] = [[] for _ in instances]

    def interject(row: int, written: Sequence[int]) -> Sequence[int]:
        if written[-1] not in closing or len(calls[row]) >= MOST_FIXES:
            return ()
        fix = last_fix(tokenizer.decode(list(written)))
        if fix is None:
            return ()
        call, reply = answer_fix(instances[row], fix, sandbox)
        calls[row].append(call)
        return tuple(tokenizer.encode(reply).ids)

    drawn = continue_rows(model, prompts, max_tokens, generator, temperature=temperature, interject=interject)
    runner = SandboxRunner(sandbox)
    return [
        RepairAttempt(
            instance,
            prompt,
            row.ids,
            row.own,
            tokenizer.decode([token for token in row.ids if token != END_OF_TEXT_ID]),
            tuple(row_calls),
            grade(instance, repaired_files(instance, row_calls), runner),
        )
        for instance, prompt, row, row_calls in zip(instances, prompts, drawn, calls, strict=True)
    ]


def demonstration(
    tokenizer: Tokenizer, instance: Instance, sandbox: Sandbox, *, preamble: str = ""
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Return the gold patch as a trajectory: prompt ids, completion ids with the tool's actual reply and END_OF_TEXT,
    and which completion tokens a model would have generated.

    Raises:
        SandboxUnavailableError: when the isolation fails.
    """
    text = gold_text(instance)
    written = last_fix(text)
    assert written is not None  # a gold text always ends with a fix
    _, reply = answer_fix(instance, written, sandbox)
    fix_ids, reply_ids = tokenizer.encode(text).ids, tokenizer.encode(reply).ids
    own = (True,) * len(fix_ids) + (False,) * len(reply_ids) + (True,)
    prompt = tokenizer.encode(preamble + instance_text(instance)).ids
    return tuple(prompt), (*fix_ids, *reply_ids, END_OF_TEXT_ID), own


def _prompt(
    model: Cognate, tokenizer: Tokenizer, preamble: str, instance: Instance, max_tokens: int
) -> tuple[int, ...]:
    prompt = tokenizer.encode(preamble + instance_text(instance)).ids
    longest = model.config.max_seq_len
    if len(prompt) + max_tokens > longest:
        raise ValueError(
            f"{len(prompt)} tokens of preamble and instance and {max_tokens} of completion exceed max_seq_len = "
            f"{longest} ({instance.name}): shorten the preamble, or lower max_tokens"
        )
    return tuple(prompt)
