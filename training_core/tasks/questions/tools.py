"""Tools that a model calls within its completion, and their replies.

    calculator   <<17+25=          -> 42>>           the notation of GSM8K (Cobbe et al., 2021, arXiv:2110.14168)
    python       <py>print(1)</py> -> <out>1</out>   standard output, stripped

The model generates the left side; the reply on the right is inserted after it and masked from the loss. The calculator
computes with exact fractions. Python runs in a sandbox and nowhere else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from training_core.tasks.sandbox import Limits, Program, Sandbox

MAX_EXPRESSION_CHARS = 80
MAX_OUTPUT_CHARS = 60
PLACES = 6
LARGEST = 10**30
_OPEN_CALCULATION = re.compile(r"<<((?:(?!<<|>>).)*)=\Z", re.DOTALL)
_OPEN_PROGRAM = re.compile(r"<py>((?:(?!<py>|</py>).)*)</py>\Z", re.DOTALL)
_TOOL_OUTPUT = re.compile(r"(?<==)(?P<result>[^<>=]*>>)|(?<=</py>)(?P<printed><out>.*?</out>)", re.DOTALL)
TRIGGERS = "=>"  # a call ends with one of these


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: `tool` is "calculator" or "python"; `output` is what the model reads; `status` is "ok" or the error."""

    tool: str
    input: str
    output: str
    status: str


class CalculationError(ValueError):
    """Raised when a text is not an expression of the calculator."""


class ToolBox:
    """The calculator, and Python in `sandbox`, behind one interface."""

    def __init__(self, sandbox: Sandbox, limits: Limits | None = None) -> None:
        self.sandbox = sandbox
        self._limits = limits if limits is not None else Limits(seconds=2.0, memory_bytes=64 << 20, output_bytes=2000)

    @property
    def sandbox_name(self) -> str:
        """Name of the sandbox that answers Python calls."""
        return self.sandbox.name

    def answer(self, written: str) -> tuple[ToolCall, str] | None:
        """Return the call that `written` ends with and the text to insert after it; None if it ends with no call.

        Raises:
            SandboxUnavailableError: when the isolation fails. The model's own text never raises.
        """
        if calculation := _OPEN_CALCULATION.search(written):
            expression = calculation[1]
            try:
                output, status = calculate(expression), "ok"
            except CalculationError as error:
                output, status = "error", str(error)
            return ToolCall("calculator", expression, output, status), f"{output}>>"
        if program := _OPEN_PROGRAM.search(written):
            outcome = self.sandbox.run(Program(program[1]), self._limits)
            output = outcome.stdout.strip() if outcome.status == "ok" else outcome.status
            output = output.replace("<", "").replace(">", "")[:MAX_OUTPUT_CHARS]  # output must not open or close a call
            status = "ok" if outcome.status == "ok" else f"{outcome.status}: {outcome.error}"
            return ToolCall("python", program[1], output, status), f"<out>{output}</out>"
        return None


def segments(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a text in order, each with whether it is tool output."""
    end = 0
    for match in _TOOL_OUTPUT.finditer(text):
        # Only after an open call: "3 = 4>>" without "<<" is plain text.
        if not (_OPEN_CALCULATION.search(text[: match.start()]) or _OPEN_PROGRAM.search(text[: match.start()])):
            continue
        if match.start() > end:
            yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    if end < len(text):
        yield text[end:], False


def calculate(expression: str) -> str:
    """Evaluate an expression of numbers, + - * /, signs and parentheses; return an integer or at most 6 decimal places
    (rounded half to even).

    Raises:
        CalculationError: for anything else, a division by zero, or a number beyond 10^30.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise CalculationError(f"the expression is longer than {MAX_EXPRESSION_CHARS} characters")
    if not re.fullmatch(r"[0-9.+\-*/() ]+", expression) or "**" in expression or "//" in expression:
        raise CalculationError("only numbers, + - * / and parentheses are known")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as error:  # 80 characters nest too little for the last two
        raise CalculationError("not an expression") from error
    return _written(_value(tree.body, expression.strip()))


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        result = Fraction(
            ast.get_source_segment(source, node) or ""
        )  # exact: from the digits, not from the parsed float
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, source)
        result = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp):
        result = _combined(node.op, _value(node.left, source), _value(node.right, source))
    else:
        raise CalculationError("only numbers, + - * / and parentheses are known")
    if abs(result) > LARGEST:
        raise CalculationError("a number is beyond 10^30")
    return result


def _combined(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if isinstance(operator, ast.Add):
        return left + right
    if isinstance(operator, ast.Sub):
        return left - right
    if isinstance(operator, ast.Mult):
        return left * right
    if right == 0:
        raise CalculationError("division by zero")
    return left / right


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(value * 10**PLACES)
    sign, digits = "-" if scaled < 0 else "", str(abs(scaled)).rjust(PLACES + 1, "0")
    return f"{sign}{digits[:-PLACES]}.{digits[-PLACES:]}".rstrip("0").rstrip(".")
