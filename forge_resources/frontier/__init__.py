"""Frontier models as a source of questions: requests through OpenRouter, with a cost cap, a cache and verification.

All of it is optional: without a key the curriculum's questions come from generators alone.
"""

from forge_resources.frontier.client import FrontierClient
from forge_resources.frontier.config import FrontierConfig
from forge_resources.frontier.errors import FrontierError, FrontierStopError
from forge_resources.frontier.protocol import Answer, ChatRequest

__all__ = ["Answer", "ChatRequest", "FrontierClient", "FrontierConfig", "FrontierError", "FrontierStopError"]
