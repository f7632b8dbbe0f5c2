"""Configuration of the frontier client: models, server, retries and cost cap."""

import ipaddress
import math
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEFAULT_MODELS = ("openai/gpt-4o-mini", "anthropic/claude-3.5-haiku", "google/gemini-2.0-flash-001")
DEFAULT_PRICES: Mapping[str, list[float]] = {
    "openai/gpt-4o-mini": [0.15, 0.60],
    "anthropic/claude-3.5-haiku": [0.80, 4.00],
    "google/gemini-2.0-flash-001": [0.10, 0.40],
}


class FrontierConfig(BaseModel):
    """Settings of the frontier client. It names the variable that holds the key, and never contains the key itself."""

    # A key pasted into a field by mistake must not be repeated in the validation error.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str = Field("https://openrouter.ai/api/v1", description="URL of a chat-completions server")
    models: tuple[str, ...] = Field(DEFAULT_MODELS, min_length=1, description="Models to ask, by the server's names")
    usd_per_million_tokens: dict[str, list[float]] = Field(
        dict(DEFAULT_PRICES),
        description="Maximum prices of each model: US dollars per million tokens of prompt, of completion",
    )
    limit_price: bool = Field(True, description="Ask OpenRouter to exclude providers above the table's prices")
    structured: bool = Field(True, description="Ask the server to enforce a JSON schema on answers")
    key_variable: str = Field("OPENROUTER_API_KEY", description="Name of the environment variable that holds the key")
    max_cost_usd: float = Field(5.0, gt=0, allow_inf_nan=False, description="Cap on the total cost of an answer folder")
    max_concurrency: int = Field(8, ge=1, le=256, description="Requests in flight at once")
    timeout_s: float = Field(
        120.0, gt=0, le=3600, description="Timeout of one request, from sending to the last byte of its reply"
    )
    max_retries: int = Field(6, ge=0, le=20, description="Maximum retries of a request that was not charged")
    backoff_s: float = Field(1.0, gt=0, le=60, description="First wait before a retry; doubles each time, with jitter")
    max_wait_s: float = Field(120.0, gt=0, le=3600, description="Longest wait; requests that need a longer one fail")
    ask_again_uncertain: bool = Field(
        False, description="Repeat requests whose answer was lost, although they may have been charged"
    )
    seed: int = Field(17, ge=0, description="Seed of the backoff's jitter")

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise ValueError("key_variable is the name of a variable, in capitals; put the key into that variable")
        return name

    @field_validator("base_url")
    @classmethod
    def _is_private(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "base_url must hold no credentials and no query: the key belongs in an environment variable"
            )
        if parts.scheme == "https" and parts.hostname:
            return url
        if parts.scheme != "http" or not _is_this_machine(parts.hostname or ""):
            raise ValueError("base_url must begin with https:// (or be on this machine): else the key could be read")
        return url

    @model_validator(mode="after")
    def _has_prices(self) -> "FrontierConfig":
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models must differ from each other, got {', '.join(self.models)}")
        for model in self.models:
            if model not in self.usd_per_million_tokens:
                raise ValueError(
                    f"usd_per_million_tokens has no price for the model {model}: without one its cost cannot be "
                    "capped; add the two prices that the server lists"
                )
        for model, prices in self.usd_per_million_tokens.items():
            if len(prices) != 2 or not all(math.isfinite(price) and price >= 0 for price in prices):
                raise ValueError(
                    f"prices must be two, for a prompt and a completion, finite and at least 0, "
                    f"got {prices} for {model}"
                )
        return self

    def prices(self, model: str) -> tuple[float, float] | None:
        """Return US dollars per million tokens of prompt and of completion; None if the table has no price."""
        prices = self.usd_per_million_tokens.get(model)
        return (prices[0], prices[1]) if prices is not None else None


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
