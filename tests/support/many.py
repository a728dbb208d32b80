"""Many HTTP connections at once, from one event loop, with every answer kept."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answers:
    """What came back: `statuses` counts HTTP codes, `wrong` keeps answers that were not the request's own."""

    statuses: Counter[int] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.statuses.values())


async def ask(port: int, model: str, connections: int, each: int, answers: Answers) -> None:
    """`connections` connections send `each` requests, one after another, to an identity-like model `x` -> `y` [1,4].

    Each request carries numbers of its own, which its answer must bring back.
    """
    await asyncio.gather(*[_converse(port, model, number, each, answers) for number in range(connections)])


async def status(port: int, path: str) -> int:
    """The HTTP status of a GET, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return int((await asyncio.wait_for(reader.readline(), 60)).split(b" ", 2)[1])
    finally:
        writer.close()


async def _converse(port: int, model: str, number: int, each: int, answers: Answers) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for turn in range(each):
            mine = [float(number), float(turn), 0.5, -1.0]
            body = json.dumps(
                {
                    "id": f"{number}-{turn}",
                    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": mine}],
                }
            ).encode()
            head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status, answer = await _read(reader)
            answers.statuses[status] += 1
            if status == 200:
                if answer["id"] != f"{number}-{turn}" or answer["outputs"][0]["data"] != mine:
                    answers.wrong.append((mine, answer))
            else:
                answers.errors.append(answer["error"])
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    status = int(head.split(b" ", 2)[1])
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    body = await asyncio.wait_for(reader.readexactly(length), 60)
    return status, json.loads(body)
