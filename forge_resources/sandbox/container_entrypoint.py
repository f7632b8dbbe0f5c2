"""Entrypoint inside a container: a program, a candidate that answers calls, or the tests that judge it.

The text of this file, after that of `system_calls.py`, is the container's command (`python3 -I -c TEXT ROLE`), so it
imports only the standard library, and the image needs only Python. The host communicates with it in lines of JSON.

* `program`: reads {"code", "stdin"} and becomes that program.
* `candidate`: reads {"code"}, runs it, then answers {"op", ...} lines until its input ends.
* `judge`: reads {"tests", "nonce"}, runs the tests, sends {"op", ...} lines for everything that they need from the
  candidate and reads the answers, and ends with {"verdict", "detail", "nonce"}.

Judge and candidate are in different containers, and the host copies lines between them. A value crosses as data, by its
exact type: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset. For anything else
(functions, classes, instances, generators) the judge receives a `Handle` that forwards calls, attributes and items to
the candidate; comparing a handle, or using it as a truth value, is "unsupported", because the candidate itself would
determine the result.
"""

import ast
import builtins
import importlib
import itertools
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

MAX_LINE = 1 << 24
MAX_ITEMS = 100_000
EXACT = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


class Unsupported(BaseException):
    """Raised when a value cannot cross. Not an `Exception`, so that tests do not catch it."""


class Gone(BaseException):
    """Raised when the candidate no longer answers. Not an `Exception`, so that tests do not catch it."""


class Ending:
    """A context that catches everything that foreign code raises, SystemExit included, and keeps it as `error`."""

    error: BaseException | None = None

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return True


class Channel:
    """Lines of JSON over duplicates of the first two descriptors, out of the way of the program's own streams."""

    def __init__(self) -> None:
        self.source = os.dup(0)
        self.sink = os.dup(1)
        self.pending = b""

    def silence(self) -> None:
        """Redirect the program's standard streams to /dev/null."""
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)

    def receive(self) -> dict[str, Any]:
        """Receive the next line; raise EOFError if the host has closed."""
        while b"\n" not in self.pending:
            data = os.read(self.source, 1 << 16)
            if not data or len(self.pending) > MAX_LINE:
                raise EOFError
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, message: dict[str, Any]) -> None:
        """Send one line."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.sink, data) :]


def encode(value: Any, hand_out: Callable[[Any], Any]) -> Any:
    """Encode a value as JSON; `hand_out` gives the representation of one that is not data."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind is float:
        return {"float": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is dict:
        return {"dict": [[encode(k, hand_out), encode(v, hand_out)] for k, v in value.items()]}
    if kind in EXACT.values():
        return {kind.__name__: [encode(item, hand_out) for item in value]}
    return hand_out(value)


def decode(value: Any, look_up: Callable[[int], Any]) -> Any:
    """Decode a value of `encode`; `look_up` gives the object for a number of `hand_out`."""
    if value is None or type(value) in (bool, str):
        return value
    ((tag, body),) = value.items()
    if tag == "int":
        return int(body, 16)
    if tag == "float":
        return float.fromhex(body)
    if tag == "complex":
        return complex(float.fromhex(body[0]), float.fromhex(body[1]))
    if tag == "bytes":
        return bytes.fromhex(body)
    if tag == "dict":
        return {decode(k, look_up): decode(v, look_up) for k, v in body}
    if tag == "handle":
        return look_up(int(body))
    return EXACT[tag](decode(item, look_up) for item in body)


def last_line(error: BaseException) -> str:
    """Return an error as `Type: message` in one line of at most 500 characters."""
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())[-500:]


def program() -> None:
    """Become the program, with its own `__main__`, the given standard input, and no other open descriptor."""
    channel = Channel()
    request = channel.receive()
    given = os.memfd_create("stdin")
    os.write(given, request["stdin"].encode())
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    for descriptor in (given, channel.source, channel.sink):
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that output before a kill is not lost
    run_as_main(request["code"], "program.py")


def run_as_main(code: str, name: str) -> dict[str, Any]:
    """Run source as the module `__main__`, and return its namespace."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv[:] = [name]
    exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def candidate() -> None:
    """Run the candidate's source, then perform the judge's requests until the host closes."""
    channel = Channel()
    request = channel.receive()
    channel.silence()
    kept: list[Any] = []

    def hand_out(value: Any) -> Any:
        kept.append(value)
        return {"handle": len(kept) - 1}

    with Ending() as ending:
        namespace = run_as_main(request["code"], "candidate.py")
    if ending.error is not None:
        channel.send({"failed": last_line(ending.error), "memory": isinstance(ending.error, MemoryError)})
        return
    channel.send({"ready": True})
    while True:
        request = channel.receive()
        with Ending() as ending:
            answer = {"value": encode(perform(request, namespace, kept), hand_out)}
        if (error := ending.error) is not None:
            if not isinstance(error, Exception):
                raise error
            names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
            answer = {"raised": names[0], "message": str(error)[:500], "text": last_line(error)}
        channel.send(answer)


def perform(request: dict[str, Any], namespace: dict[str, Any], kept: list[Any]) -> Any:
    """Perform one operation of the judge on the candidate's objects."""
    operation = request["op"]
    if operation == "names":
        return [name for name in request["names"] if name in namespace]
    if operation == "name":
        return namespace[request["name"]]
    target = kept[request["target"]]
    if operation == "attribute":
        return getattr(target, request["name"])
    if operation == "items":
        items = list(itertools.islice(target, MAX_ITEMS + 1))
        if len(items) > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items")
        return items
    arguments = [decode(item, kept.__getitem__) for item in request["arguments"]]
    if operation == "length":
        return len(target)
    if operation == "item":
        return target[arguments[0]]
    named = {name: decode(item, kept.__getitem__) for name, item in request["named"].items()}
    return target(*arguments, **named)


class Handle:
    """Represents an object of the candidate's in the judge. It can be called and inspected, never compared."""

    __slots__ = ("_ask", "_number")

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        self._ask = ask
        self._number = number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask(
            op="call",
            target=self._number,
            arguments=[encode(item, handed_in) for item in arguments],
            named={name: encode(item, handed_in) for name, item in named.items()},
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask(op="attribute", target=self._number, name=name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask(op="item", target=self._number, arguments=[encode(key, handed_in)])

    def __len__(self) -> int:
        return int(self._ask(op="length", target=self._number, arguments=[]))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask(op="items", target=self._number))

    def _refuse(self, *_: Any) -> NoReturn:
        raise Unsupported("the tests compare an object of the candidate's own; only data can be compared")

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __hash__ = _refuse


def handed_in(value: Any) -> Any:
    """Encode an argument that is not data: only the candidate's own objects can be passed back to it."""
    if type(value) is Handle:
        return {"handle": value._number}
    raise Unsupported(f"the tests hand the candidate a {type(value).__name__}; only data can be handed over")


class Candidate:
    """The judge's proxy of the candidate: it sends requests and decodes the answers."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.calls = 0

    def ask(self, **request: Any) -> Any:
        """Send one request and return the answer.

        Raises:
            Exception: of the builtin type that the candidate raised.
            Gone: when it does not answer, or the answer is malformed.
        """
        self.channel.send(request)
        try:
            answer = self.channel.receive()
            if "gone" in answer:
                raise Gone(str(answer["gone"]))
            self.calls += 1
            if "raised" not in answer:
                return decode(answer["value"], lambda number: Handle(self.ask, number))
            kind, message, text = answer["raised"], str(answer["message"]), str(answer["text"])[:500]
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Gone(f"the candidate answered out of form: {last_line(error)}") from None
        raised = getattr(builtins, str(kind), None)
        if not (isinstance(raised, type) and issubclass(raised, Exception)):
            raise Gone(f"the candidate answered with an exception of no known type: {kind!s:.80}")
        if issubclass(raised, UnicodeError):  # its constructors need five arguments
            raised = ValueError
        reborn: Any = raised(message)
        reborn.candidate_text = text
        raise reborn


def free_names(tests: str) -> tuple[list[str], list[str]]:
    """Return the names that the tests load but do not define, without builtins; and those whose attributes they use."""
    loaded: set[str] = set()
    looked_into: set[str] = set()
    defined = set(dir(builtins))
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            looked_into.add(node.value.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return sorted(loaded - defined), sorted(looked_into - defined)


def judge() -> None:
    """Run the tests and send the verdict."""
    channel = Channel()
    request = channel.receive()
    channel.silence()
    other = Candidate(channel)
    with Ending() as ending:
        names, looked_into = free_names(request["tests"])
        modules = [name for name in looked_into if name in sys.stdlib_module_names]
        namespace: dict[str, Any] = {name: importlib.import_module(name) for name in modules}
        namespace["__name__"] = "__main__"
        wanted = [name for name in names if name not in modules]
        available = [name for name in other.ask(op="names", names=wanted) if name in wanted]
        if not available:
            raise ValueError(
                f"the tests use nothing that the candidate defines: it lacks {', '.join(wanted) or 'a use'}"
            )
        namespace |= {name: other.ask(op="name", name=name) for name in available}
        other.calls = 0
        exec(compile(request["tests"], "tests.py", "exec", dont_inherit=True), namespace)
    status, detail = verdict_on(ending.error)
    channel.send({"verdict": status, "detail": detail, "calls": other.calls, "nonce": request["nonce"]})


def verdict_on(error: BaseException | None) -> tuple[str, str]:
    """Return the status of a `Verdict` and its detail for how the tests ended. SystemExit is not a pass."""
    if error is None:
        return "passed", ""
    if isinstance(error, Unsupported):
        return "unsupported", str(error)
    if isinstance(error, MemoryError):
        return "memory", last_line(error)
    own = getattr(error, "candidate_text", None)
    if isinstance(error, AssertionError) and own is None:
        return "wrong", describe(error)
    return "error", own or describe(error)


def describe(error: BaseException) -> str:
    """Return the error with the line number in the tests at which it was raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "tests.py"]
    return f"{last_line(error)} (line {lines[-1]} of the tests)" if lines else last_line(error)


if __name__ == "__main__":
    {"program": program, "candidate": candidate, "judge": judge}[sys.argv[1]]()
