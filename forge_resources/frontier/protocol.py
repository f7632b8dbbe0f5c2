"""The chat-completions protocol: requests and their digests, parsing of replies, and cost.

**Differs from OpenRouter's older documentation**: `usage: {include: true}` is not sent; it has no effect any more, the
cost is always reported, and other servers reject unknown fields.
"""

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CostSource = Literal["reported", "priced", "assumed"]
_PROMPT_MARGIN_TOKENS = 64  # generous allowance for the tokens that the server's chat template adds
_MESSAGE_CHARS = 300


class ChatRequest(BaseModel):
    """One request. Requests with equal fields are the same request and are paid for once.

    schema_name, json_schema: JSON schema (as JSON text) that the answer should satisfy; empty for free text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    system: str = ""
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(ge=1, le=65536)
    temperature: float = Field(ge=0, le=2)
    seed: int = Field(ge=0, lt=2**31)
    schema_name: str = ""
    json_schema: str = ""

    def canonical(self) -> bytes:
        """Return the canonical form of the request, on which its digest is based."""
        return json.dumps({"version": 1} | self.model_dump(), sort_keys=True, separators=(",", ":")).encode()

    def digest(self) -> str:
        """Return the SHA-256 of the canonical request."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def worst_cost_usd(self, prices: tuple[float, float]) -> float:
        """Return the maximum cost of the request at `prices`."""
        # A token has at least one byte, so the number of bytes bounds the number of prompt tokens.
        prompt_tokens = len(self.canonical()) + _PROMPT_MARGIN_TOKENS
        return (prompt_tokens * prices[0] + self.max_tokens * prices[1]) / 1e6

    def room_bytes(self) -> int:
        """Return the maximum size in bytes of a reply, and of its answer on disk."""
        return (1 << 16) + 16 * self.max_tokens + 2 * len(self.canonical())

    def arguments(self, prices: tuple[float, float] | None, structured: bool) -> dict[str, Any]:
        """Return the arguments for the client library. `prices`: maximum prices of a provider, None for no limit."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": self.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if prices is not None:
            limits = {"prompt": prices[0], "completion": prices[1]}
            arguments["extra_body"] = {"provider": {"max_price": limits}}
        if structured and self.json_schema:
            schema = {"name": self.schema_name, "strict": True, "schema": json.loads(self.json_schema)}
            arguments["response_format"] = {"type": "json_schema", "json_schema": schema}
        return arguments


class Answer(BaseModel):
    """The answer to a request, as stored on disk.

    text: the model's output. problem: why it is unusable (cut off, refused, not in the protocol); empty if it is not.
    cost_source: "reported" by the server, "priced" from its token counts, or "assumed" to be the maximum if the server
    reported neither. served_by: the model named by the server. cached: whether it was on disk already.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    model: str
    text: str
    problem: str
    cost_usd: float = Field(ge=0, allow_inf_nan=False)
    cost_source: CostSource
    served_by: str = ""
    cached: bool = False


class ServerError(BaseModel):
    """An error reported by the server, with its HTTP status (which may also be inside a reply of status 200)."""

    model_config = ConfigDict(frozen=True)

    status: int
    message: str


class _Words(BaseModel):
    message: str = ""
    code: int | str | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    error: _Words | None = None


class _Reply(BaseModel):
    choices: list[_Choice] | None = None
    model: str = ""
    error: _Words | None = None


class _Cost(BaseModel):
    model_config = ConfigDict(strict=True)

    upstream_inference_cost: float | None = Field(None, ge=0, allow_inf_nan=False)


class _Usage(BaseModel):
    model_config = ConfigDict(strict=True)

    prompt_tokens: int | None = Field(None, ge=0)
    completion_tokens: int | None = Field(None, ge=0)
    cost: float | None = Field(None, ge=0, allow_inf_nan=False)
    is_byok: bool = False
    cost_details: _Cost | None = None


class _Counted(BaseModel):
    usage: _Usage | None = None


# An error in a reply of status 200 arises "while the model is producing the output" and may have been charged, except
# when its code means that nothing was produced.
_NOTHING_PRODUCED = {400, 401, 402, 403, 404, 429, 503}


def read_reply(body: str, request: ChatRequest, prices: tuple[float, float]) -> Answer | ServerError:
    """Parse a reply of status 200 into an answer (possibly with a problem), or an error before any output."""
    cost, source = _cost(body, prices)
    if source == "assumed":
        cost = request.worst_cost_usd(prices)
    answer = Answer(
        digest=request.digest(), model=request.model, text="", problem="", cost_usd=cost, cost_source=source
    )
    if len(body.encode()) > request.room_bytes():
        return answer.model_copy(update={"problem": "the reply is longer than max_tokens allow"})
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError as error:
        what = error.errors(include_url=False, include_input=False)[0]["msg"]
        return answer.model_copy(update={"problem": f"not a chat completion: {what[:_MESSAGE_CHARS]}"})
    if reply.error is not None and not reply.choices:
        code = reply.error.code
        status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 0
        if source == "assumed" and status in _NOTHING_PRODUCED:
            return ServerError(status=status, message=reply.error.message[:_MESSAGE_CHARS])
        return answer.model_copy(update={"problem": f"the server failed: {reply.error.message[:_MESSAGE_CHARS]}"})
    if not reply.choices:
        return answer.model_copy(update={"problem": "the reply has no choices"})
    choice = reply.choices[0]
    text = choice.message.content or ""
    return answer.model_copy(update={"text": text, "problem": _problem(choice), "served_by": reply.model})


def error_message(body: str) -> str:
    """Return the message of an error reply, on one line."""

    class Wrapped(BaseModel):
        error: _Words

    try:
        text = Wrapped.model_validate_json(body).error.message
    except ValidationError:
        text = body
    return " ".join(text.split())[:_MESSAGE_CHARS]


def _problem(choice: _Choice) -> str:
    if choice.error is not None or choice.finish_reason == "error":
        return f"the server failed: {choice.error.message[:_MESSAGE_CHARS] if choice.error else 'no reason given'}"
    if choice.message.refusal:
        return f"refused: {choice.message.refusal[:_MESSAGE_CHARS]}"
    if choice.finish_reason == "content_filter":
        return "refused by a content filter"
    if choice.finish_reason == "length":
        return "cut off at max_tokens"
    return "" if (choice.message.content or "").strip() else "the answer is empty"


def _cost(body: str, prices: tuple[float, float]) -> tuple[float, CostSource]:
    try:
        usage = _Counted.model_validate_json(body).usage
    except ValidationError:
        usage = None
    if usage is not None and usage.cost is not None:
        upstream = usage.cost_details.upstream_inference_cost if usage.is_byok and usage.cost_details else None
        return usage.cost + (upstream or 0.0), "reported"
    if usage is not None and usage.prompt_tokens is not None and usage.completion_tokens is not None:
        cost = (usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]) / 1e6
        return (cost, "priced") if math.isfinite(cost) else (0.0, "assumed")
    return 0.0, "assumed"
