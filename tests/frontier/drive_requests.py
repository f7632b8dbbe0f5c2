"""Send thirty requests to a server, as a process that a test kills meanwhile.

Arguments: the server's address, the cache folder, and a limit on file sizes (0: none).
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from forge_resources.frontier import ChatRequest, FrontierClient, FrontierConfig, FrontierError


def requests() -> list[ChatRequest]:
    return [
        ChatRequest(model="m", prompt=f"What is {n} + {n}?", max_tokens=100, temperature=0.0, seed=n) for n in range(30)
    ]


def settings(url: str) -> FrontierConfig:
    return FrontierConfig(
        base_url=url, models=("m",), usd_per_million_tokens={"m": [1.0, 10.0]}, max_concurrency=4, backoff_s=0.01
    )


async def ask_all(url: str, folder: Path) -> tuple[list[str], str]:
    async with FrontierClient(settings(url), folder) as client:
        replies = await asyncio.gather(*(client.ask(request) for request in requests()), return_exceptions=True)
        for one in replies:
            if isinstance(one, BaseException) and not isinstance(one, FrontierError):
                raise one
        return [
            one.text if not isinstance(one, BaseException) else str(one) for one in replies
        ], client.spend().describe()


if __name__ == "__main__":
    if limit := int(sys.argv[3]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    texts, spent = asyncio.run(ask_all(sys.argv[1], Path(sys.argv[2])))
    print(*texts, spent, sep="\n")
