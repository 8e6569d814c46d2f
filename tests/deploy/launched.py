"""A worker as torchrun starts it: `terrace train`, but each with a store of its own below --store.

That is no way to train, since what one worker learns of a row the others never see; but all that
surrounds the rows is as with servers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import deploy.job
import ps
from deploy.command import run
from ps.launch import Launch


class Split(deploy.job.Job):
    @contextmanager
    def opened(self) -> Iterator[ps.Store]:
        own = self.store / str(self.launch.rank)
        with super(Split, replace(self, store=own, launch=Launch())).opened() as store:
            yield store


if __name__ == "__main__":
    deploy.job.Job = Split
    sys.exit(run(["train", *sys.argv[1:]]))
