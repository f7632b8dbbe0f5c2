"""The transport that adds the key to requests and removes it from replies. Needs the client library."""

from urllib.request import getproxies, proxy_bypass

import httpx2
from pydantic import SecretStr

from forge_resources.frontier.secret import REDACTED

_HEADERS = ("accept", "content-type", "content-length", "host", "user-agent")


class ReplyTooLargeError(httpx2.TransportError):
    """The server's reply exceeds the maximum size of an answer."""


class KeyedTransport(httpx2.AsyncBaseTransport):
    """Sends requests with the key, and returns complete replies without it.

    Only the headers that the protocol needs are sent. The environment's proxy is used.
    """

    def __init__(self, key: SecretStr, base_url: str, connections: int, max_bytes: int) -> None:
        self._key = key
        self._origin = _origin(httpx2.URL(base_url))
        self._max_bytes = max_bytes
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._inner = httpx2.AsyncHTTPTransport(proxy=environment_proxy(base_url), limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request.

        Raises:
            ReplyTooLargeError: when the reply exceeds the maximum size of an answer.
        """
        if _origin(request.url) != self._origin:
            raise httpx2.UnsupportedProtocol(f"the key is sent to {self._origin} alone, not to {_origin(request.url)}")
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        headers |= {"authorization": f"Bearer {self._key.get_secret_value()}", "accept-encoding": "identity"}
        keyed = httpx2.Request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
        )
        response = await self._inner.handle_async_request(keyed)
        try:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._max_bytes:
                    raise ReplyTooLargeError(f"the reply is longer than {self._max_bytes} bytes")
        finally:
            await response.aclose()
        secret = self._key.get_secret_value().encode()
        cleaned = [
            (name, value.replace(secret, REDACTED.encode()))
            for name, value in response.headers.raw
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding", b"set-cookie")
        ]
        content = bytes(body).replace(secret, REDACTED.encode())
        return httpx2.Response(response.status_code, headers=cleaned, content=content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def environment_proxy(base_url: str) -> str | None:
    """Return the proxy that the environment configures for this address, if any."""
    url = httpx2.URL(base_url)
    proxies = getproxies()
    return None if proxy_bypass(url.host) else proxies.get(url.scheme) or proxies.get("all")
