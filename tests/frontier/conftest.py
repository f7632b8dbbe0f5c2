"""Fixtures for the tests of the frontier client: a planted API key, and fast settings for a local server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from forge_resources.frontier import ChatRequest, FrontierConfig

KEY = "sk-or-v1-planted0123456789abcdef"
MODELS = ("lab/one", "lab/two", "lab/three")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return KEY


@pytest.fixture
def config() -> Callable[..., FrontierConfig]:
    def make(url: str, **changes: Any) -> FrontierConfig:
        settings = {
            "base_url": url,
            "models": MODELS,
            "usd_per_million_tokens": {model: [1.0, 10.0] for model in MODELS},
            "backoff_s": 0.01,
            "timeout_s": 10.0,
            "max_retries": 3,
        }
        return FrontierConfig(**settings | changes)

    return make


@pytest.fixture
def request_of() -> Callable[..., ChatRequest]:
    def make(prompt: str = "2 + 2?", model: str = "lab/one", seed: int = 0) -> ChatRequest:
        return ChatRequest(model=model, prompt=prompt, max_tokens=100, temperature=0.0, seed=seed)

    return make
