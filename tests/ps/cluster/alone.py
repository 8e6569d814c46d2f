"""torch.distributed with this process alone in it: what several do is in `crew`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from ps.cluster.exchange import Exchange


@contextmanager
def alone(folder: Path) -> Iterator[Exchange]:
    """An exchange of one worker."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    exchange = Exchange("alone", torch.device("cpu"))
    try:
        yield exchange
    finally:
        exchange.close()
        dist.destroy_process_group()
