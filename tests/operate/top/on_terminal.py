"""Watches a tree that was made up, on the terminal on which it runs: `python -m … [fails]`; with `fails` the key `s` raises."""

import sys
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervise.operate.top.terminal import watch
from top.made import Client, event, status


class Growing(Client):
    async def status(self):
        self.last = 20
        return status(seq=20)

    async def stack(self, path):
        raise RuntimeError("a defect of the program")


client = Growing(events=[event(number) for number in range(15, 21)])
if sys.argv[1:] != ["fails"]:
    client.stack = lambda path: Client.stack(client, path)
trio.run(watch, client)
