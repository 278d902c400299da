"""``python -m tests.serving.fakes triton|kserve|torchserve [PORT] [SECONDS_A_WORD]``: prints its
url and serves until it is killed."""

import asyncio
import sys

from tests.serving.fakes.servers import Fake, start


async def main(kind: str, port: int, word_s: float) -> None:
    fake = Fake(word_s=word_s)
    await start(kind, fake, port)
    print(fake.url, flush=True)
    await asyncio.Event().wait()


kind, port, word_s = [*sys.argv[1:], "0", "0"][:3]
asyncio.run(main(kind, int(port), float(word_s)))
