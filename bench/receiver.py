"""Webhook receiver on loopback that responds with 200 immediately: `python -m bench.receiver PORT`."""

import asyncio
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HEAD_END, LENGTH = b"\r\n\r\n", b"content-length:"


class SenderConnection(asyncio.Protocol):
    """A sender's connection, which finds the end of each request and parses nothing else."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.unread = b""

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while (end := self._end()) is not None and len(self.unread) >= end:
            self.unread = self.unread[end:]
            self.transport.write(ANSWER)

    def _end(self) -> int | None:
        """Return the end of the first request if its headers were received, otherwise None."""
        head, found, _ = self.unread.partition(HEAD_END)
        if not found:
            return None
        _, named, value = head.lower().partition(LENGTH)
        return len(head) + len(HEAD_END) + (int(value.split(b"\r\n", 1)[0]) if named else 0)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(SenderConnection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
