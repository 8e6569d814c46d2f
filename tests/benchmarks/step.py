"""One training step of the embedding layer, all rows in RAM, beside its peers in the same run.

Workload W: 5 M rows x 64 float32, 4096 examples x 26 ids a step, Zipf 1.05, row-wise Adagrad, one
thread: look up, backward with a constant gradient, update. Ours look up hashed 64-bit keys through
the public modules (dedupe, index, pins and finite check included); the peers have dense ids.

Peers take turns with us, a few steps each, so that what else the machine does falls on all. Printed
are the median and the spread of all steps. Peers that are not installed are left out:

    .venv/bin/pip install --no-deps fbgemm-gpu-cpu==1.8.0      # goes with torch 2.13
    .venv/bin/python -m tests.benchmarks.step --json run/step.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import ps
import worker
from storage.keys import mix_keys

BATCH, FEATURES, DIM, ALPHA = 4096, 26, 64, 1.05
Step = Callable[[np.ndarray], None]


def zipf_ids(rows: int, steps: int, seed: int = 1234) -> np.ndarray:
    """(steps, BATCH * FEATURES) int64 in [0, rows): inverse-CDF Zipf, ranks scattered."""
    rng = np.random.default_rng(seed)
    cdf = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -ALPHA)
    ranks = np.searchsorted(cdf / cdf[-1], rng.random(steps * BATCH * FEATURES))
    ids = np.random.default_rng(seed + 1).permutation(rows)[np.minimum(ranks, rows - 1)]
    return ids.astype(np.int64).reshape(steps, BATCH * FEATURES)


def terrace_step(rows: int, threads: int, folder: str) -> tuple[Step, ps.Store]:
    """Our step on hashed keys; the store to close."""
    table = ps.Table("w", dim=DIM, optimizer=ps.RowWiseAdagrad(lr=0.01), init=ps.Constant(0.01))
    store = ps.open(folder, [table], ram=rows * 360 + (1 << 28), threads=threads)
    piece = 100_000
    for start in range(0, rows, piece):
        ids = np.arange(start, min(rows, start + piece)).astype(np.uint64)
        keys = mix_keys(ids).view(np.int64)
        store.write("w", keys, np.full((len(keys), DIM), 0.01, np.float32))
    bag, sparse = worker.EmbeddingBag(store, "w"), worker.SparseOptimizer(store)
    gradient = torch.full((BATCH * FEATURES, DIM), 0.01)

    def step(ids: np.ndarray) -> None:
        keys = torch.from_numpy(mix_keys(ids.view(np.uint64)).view(np.int64)).view(-1, 1)
        bag(keys).backward(gradient)
        sparse.step()

    return step, store


def fbgemm_step(rows: int) -> Step:
    """FBGEMM's table-batched embedding on the CPU: the update is fused into backward."""
    import fbgemm_gpu  # noqa: F401 - registers the operators
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
        EmbeddingLocation,
        PoolingMode,
    )
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    tbe = SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(rows, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, feature_table_map=[0] * FEATURES,
        learning_rate=0.01, eps=1e-8, pooling_mode=PoolingMode.SUM, device=torch.device("cpu"),
    )  # fmt: skip
    for weights in tbe.split_embedding_weights():
        weights.fill_(0.01)
    offsets = torch.arange(BATCH * FEATURES + 1)
    gradient = torch.full((BATCH, FEATURES * DIM), 0.01)

    def step(ids: np.ndarray) -> None:
        by_feature = np.ascontiguousarray(ids.reshape(BATCH, FEATURES).T).reshape(-1)
        tbe(torch.from_numpy(by_feature), offsets).backward(gradient)

    return step


def torch_step(rows: int) -> Step:
    """Plain torch with a hand-written row-wise Adagrad; no graph, the least there is to do."""
    weights, state = torch.full((rows, DIM), 0.01), torch.zeros(rows)
    gradient = torch.full((BATCH * FEATURES, DIM), 0.01)

    def step(ids: np.ndarray) -> None:
        given = torch.from_numpy(ids)
        torch.nn.functional.embedding(given, weights)
        unique, inverse = torch.unique(given, return_inverse=True)
        merged = torch.zeros((len(unique), DIM)).index_add_(0, inverse, gradient)
        state.index_add_(0, unique, merged.square().mean(1))
        change = merged * (-0.01 / (state[unique].sqrt() + 1e-8)).unsqueeze(1)
        weights.index_add_(0, unique, change)

    return step


def time_in_turn(steps: dict[str, Step], ids: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Seconds of every timed step by name; each round gives everybody the same batches."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    per_round = len(ids) // (rounds + 1)
    for number in range(rounds + 1):
        for name, step in steps.items():
            for batch in ids[number * per_round : (number + 1) * per_round]:
                began = time.perf_counter()
                step(batch)
                if number > 0:  # the first round warms up
                    times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Measure and print; ``--json`` writes keys_per_s, peers, ratio and step times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ids = zipf_ids(args.rows, (args.rounds + 1) * args.steps)
    with tempfile.TemporaryDirectory() as folder:
        ours, store = terrace_step(args.rows, args.threads, folder)
        steps = {"terrace": ours, "torch": torch_step(args.rows)}
        try:
            steps["fbgemm"] = fbgemm_step(args.rows)
        except ImportError as error:
            print(f"fbgemm left out: {error}")
        times = time_in_turn(steps, ids, args.rounds)
        store.close()
    keys = BATCH * FEATURES
    speed = {name: keys / statistics.median(spent) for name, spent in times.items()}
    for name, spent in times.items():
        low, middle, high = (1e3 * np.quantile(spent, q) for q in (0.1, 0.5, 0.9))
        step = f"step {middle:5.1f} ms ({low:.1f}-{high:.1f})"
        print(f"{name:8} {speed[name] / 1e6:5.2f} M keys/s   {step}")
    ratio = {name: speed["terrace"] / value for name, value in speed.items() if name != "terrace"}
    print("ratio   ", {name: round(value, 2) for name, value in ratio.items()})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({
            "keys_per_s": speed["terrace"], "peers": speed, "ratio": ratio, "rows": args.rows,
            "threads": args.threads, "cores": os.cpu_count(),
            "step_ms": {name: 1e3 * statistics.median(spent) for name, spent in times.items()},
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
