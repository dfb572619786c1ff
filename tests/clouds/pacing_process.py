"""A process that reads as fast as its limiter lets it: `python -m tests.clouds.pacing_process URL KEY RATE SECONDS`.

It prints the slots that it used, as JSON; `time.monotonic()` is the machine's.
"""

import asyncio
import json
import sys
import time

from orchestrator.clouds.pacing import Limiter, make_redis


async def main(url: str, key: str, rate: float, seconds: float) -> None:
    client = make_redis(url)
    limiter = Limiter(client, key, rate)
    used: list[float] = []
    end = time.monotonic() + seconds

    async def user() -> None:
        while time.monotonic() < end:
            used.append((await limiter.acquire()).at)

    await asyncio.gather(*(user() for _ in range(5)))
    print(json.dumps(used))  # noqa: T201  the answer
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
