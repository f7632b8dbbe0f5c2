"""Frontier models as a source of questions: asked through OpenRouter, capped, cached, and believed only when verified.

Nothing here is needed without a key: the curriculum's questions then come from generators alone.
"""

from forge_resources.frontier.client import FrontierClient
from forge_resources.frontier.config import FrontierConfig
from forge_resources.frontier.errors import FrontierError, FrontierStopError
from forge_resources.frontier.protocol import Answer, ChatRequest

__all__ = ["Answer", "ChatRequest", "FrontierClient", "FrontierConfig", "FrontierError", "FrontierStopError"]
