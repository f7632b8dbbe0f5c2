"""The API key: read from an environment variable, added to requests in the last step, and removed from every reply.

Everything above the transport (the client library, its logs and exceptions, the answers, all files) sees requests
before the key is added, and replies after it is removed. Below the transport only the connection writes logs, and a
filter removes the key from those records.
"""

import logging
import os
import re

from pydantic import SecretStr

from forge_resources.frontier.errors import KeyRefusedError

REDACTED = "[key]"
_MIN_CHARS = 8
_LOGGERS = (
    *("openai", "openai._base_client", "openai._response", "openai._legacy_response", "httpx2"),
    *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
)


def read_key(variable: str) -> SecretStr:
    """Read the key from the environment variable `variable`.

    Raises:
        KeyRefusedError: when it is not set or cannot be a key. The message does not repeat the value.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise KeyRefusedError(
            f"there is no key: set the environment variable {variable} to one (https://openrouter.ai/keys), or leave "
            "frontier models out; nothing was sent"
        )
    if len(key) < _MIN_CHARS or not re.fullmatch(r"[!-~]+", key):
        raise KeyRefusedError(
            f"what {variable} holds is not a key: it must be at least {_MIN_CHARS} visible ASCII characters without "
            f"spaces; nothing was sent"
        )
    return SecretStr(key)


def scrub(text: str, key: SecretStr) -> str:
    """Return `text` with every occurrence of the key replaced."""
    return text.replace(key.get_secret_value(), REDACTED)


class KeyFilter(logging.Filter):
    """Removes the key from log records, including their arguments and exceptions."""

    def __init__(self, key: SecretStr) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record, and return True: it is always kept."""
        record.msg, record.args = scrub(record.getMessage(), self._key), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text, record.exc_info = scrub(record.exc_text, self._key), None
        return True


def filter_logs(key: SecretStr) -> KeyFilter:
    """Install a filter on the loggers of the client library and its connection; undo it with `unfilter_logs`."""
    added = KeyFilter(key)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(added)
    return added


def unfilter_logs(added: KeyFilter) -> None:
    """Remove the filter of `filter_logs`."""
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(added)
