"""Bare: a gRPC server that does nothing, in a process of its own: what the transport can do here.

Identity serialisers, the same limits and threads as a shard's. ``/bare/Pull`` answers with as many
bytes as the request's text says, made beforehand; ``/bare/Push`` takes bytes and answers with none.

Run as ``python -m deploy.bench.bare``: prints its port, ends when its standard input does.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from ps.server.endpoint import OPTIONS, THREADS

PULL, PUSH = "/bare/Pull", "/bare/Push"


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        self._answers: dict[bytes, bytes] = {}

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        pulls = handler_call_details.method == PULL
        return grpc.unary_unary_rpc_method_handler(self._pull if pulls else self._push)

    def _pull(self, request: bytes, context: Any) -> bytes:
        if request not in self._answers:
            self._answers[request] = bytes(int(request))
        return self._answers[request]

    def _push(self, request: bytes, context: Any) -> bytes:
        return b""


def main() -> None:
    """Serve until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=OPTIONS)
    server.add_generic_rpc_handlers((_Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0).wait(10)


if __name__ == "__main__":
    main()
