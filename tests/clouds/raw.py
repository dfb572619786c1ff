"""A server below HTTP, so that a test sees every connection and every byte, and can break off anywhere."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Connection"], Awaitable[None]]


@dataclass
class Connection:
    """One accepted connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytearray = field(default_factory=bytearray)
    ended: bool = False
    """Whether the script is done with it: nothing more is received."""

    async def request(self) -> bytes:
        """Reads one whole request with its body; empty at the end of the connection."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = await self.reader.read(1)
            if not byte:
                return b""
            self.received += byte
            head += byte
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.received += body
        return head + body

    async def answer(self, status: str, body: bytes = b"{}", headers: str = "") -> None:
        """Writes one answer."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nContent-Type: application/json\r\n{headers}\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    def reset(self) -> None:
        """Breaks the connection off without a word."""
        self.writer.transport.abort()


@dataclass
class RawServer:
    """What a client sees, and what was seen of the client."""

    url: str
    connections: list[Connection]

    @property
    def bytes_received(self) -> int:
        """Over all connections."""
        return sum(len(c.received) for c in self.connections)

    def requests(self) -> int:
        """How many request lines arrived, over all connections."""
        return sum(c.received.count(b"HTTP/1.1\r\n") for c in self.connections)


@asynccontextmanager
async def raw_server(script: Script) -> AsyncIterator[RawServer]:
    """Runs `script` for each connection; it is closed when the script ends."""
    connections: list[Connection] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        connections.append(connection)
        try:
            await script(connection)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            connection.received += reader._buffer  # type: ignore[attr-defined]  # what nobody read counts too
            connection.ended = True
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield RawServer(url=f"http://127.0.0.1:{port}", connections=connections)
    finally:
        server.close()
