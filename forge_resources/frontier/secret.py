"""The key: read from one environment variable, added to a request in the last step, taken out of every reply.

Everything above the transport (the client library, its logs and exceptions, the answers, what is written) sees
requests that do not hold the key yet, and replies in which it no longer stands. Below it only the connection logs;
those records are cleaned by a filter.
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
    """The key in the environment variable `variable`.

    Raises:
        KeyRefusedError: when there is none, or what is there cannot be a key. It does not repeat it.
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
    """`text` with every occurrence of the key replaced."""
    return text.replace(key.get_secret_value(), REDACTED)


class KeyFilter(logging.Filter):
    """Takes the key out of log records, with their arguments and errors."""

    def __init__(self, key: SecretStr) -> None:
        super().__init__()
        self._key = key

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record; it is always kept."""
        record.msg, record.args = scrub(record.getMessage(), self._key), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text, record.exc_info = scrub(record.exc_text, self._key), None
        return True


def filter_logs(key: SecretStr) -> KeyFilter:
    """Clean the records of the client library and of the connection below it; undone by `unfilter_logs`."""
    added = KeyFilter(key)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(added)
    return added


def unfilter_logs(added: KeyFilter) -> None:
    """Take the filter away again."""
    for name in _LOGGERS:
        logging.getLogger(name).removeFilter(added)
