"""DLRM: the losses that the public reference prints, and shapes by its formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storage.errors import ConfigError
from worker.models.dlrm import DLRM, Architecture

Random = np.random.RandomState
SEED = 123


@dataclass(frozen=True)
class Batch:
    dense: Tensor
    ids: list[Tensor]
    offsets: list[Tensor]
    targets: Tensor


@dataclass(frozen=True)
class Run:
    """A run of the reference, by its flags; the defaults are the reference's."""

    rows: tuple[int, ...] = (4, 3, 2)
    bottom: tuple[int, ...] = (4, 3, 2)
    batch: int = 2
    data: int = 6
    epochs: int = 1
    lr: float = 0.01
    debug: bool = False
    rounded: bool = False
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss
    optimizer: Callable[..., torch.optim.Optimizer] = field(default=torch.optim.SGD)


def batches(run: Run, random: Random) -> Iterator[Batch]:
    """The reference's random data: bags of distinct sorted ids, at most 10 drawn."""
    for start in range(0, run.data, run.batch):
        size = min(run.batch, run.data - start)
        dense = random.rand(size, run.bottom[0]).astype(np.float32)
        tables = [[bag(rows, random) for _ in range(size)] for rows in run.rows]
        targets = random.rand(size).astype(np.float32)
        yield Batch(
            torch.from_numpy(dense),
            [torch.from_numpy(np.concatenate(bags)) for bags in tables],
            [torch.tensor([0, *np.cumsum([len(bag) for bag in bags])[:-1]]) for bags in tables],
            torch.from_numpy(np.round(targets) if run.rounded else targets),
        )


def bag(rows: int, random: Random) -> np.ndarray:
    size = int(np.round(max(1.0, random.random_sample() * min(rows, 10))))
    return np.unique(np.round(random.random_sample(size) * (rows - 1)).astype(np.int64))


class RowWiseAdagrad(torch.optim.Optimizer):
    """The reference's: one sum of mean squares a row for sparse gradients, Adagrad for dense."""

    def __init__(self, params: Iterator[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient.is_sparse:
                    total = state.setdefault("total", torch.zeros(parameter.shape[0], 1))
                    gradient = gradient.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()
                    total[rows] += values.square().mean(dim=1, keepdim=True)
                    parameter[rows] -= group["lr"] * values / (total[rows].sqrt() + 1e-10)
                else:
                    total = state.setdefault("total", torch.zeros_like(parameter))
                    total += gradient.square()
                    parameter -= group["lr"] * gradient / (total.sqrt() + 1e-10)


def losses(run: Run) -> list[float]:
    random = Random(SEED)
    if run.debug:  # the reference then prints all data before it builds the model
        list(batches(run, random))
    tables = nn.ModuleList()
    for rows in run.rows:
        weight = random.uniform(-np.sqrt(1 / rows), np.sqrt(1 / rows), (rows, run.bottom[-1]))
        weight = torch.from_numpy(weight.astype(np.float32))
        tables.append(nn.EmbeddingBag(*weight.shape, mode="sum", sparse=True, _weight=weight))
    model = DLRM(Architecture(len(run.rows), run.bottom, (4, 2, 1)), random)
    optimizer = run.optimizer(nn.ModuleList([model, tables]).parameters(), lr=run.lr)
    return [
        train(model, tables, optimizer, run.loss, batch)
        for _ in range(run.epochs)
        for batch in batches(run, Random(SEED))
    ]


def train(
    model: DLRM,
    tables: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    batch: Batch,
) -> float:
    bags = zip(tables, batch.ids, batch.offsets, strict=True)
    pooled = torch.stack([table(ids, offsets) for table, ids, offsets in bags], dim=1)
    loss = criterion(torch.sigmoid(model(batch.dense, pooled)), batch.targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


REFERENCE = {
    "defaults": (Run(), [0.025266, 0.180494, 0.083240]),
    "debug mode": (Run(debug=True), [0.018993, 0.029700, 0.049903]),
    "adagrad": (Run(optimizer=torch.optim.Adagrad), [0.025266, 0.175949, 0.078880]),
    "rwsadagrad": (Run(optimizer=RowWiseAdagrad), [0.025266, 0.175922, 0.078885]),
    "bce": (Run(rounded=True, loss=F.binary_cross_entropy), [0.161806, 1.899827, 1.025951]),
    "larger tables": (
        Run(rows=(300, 4000, 50000), bottom=(4, 16)),
        [0.009215, 0.157083, 0.149973],
    ),
    "own test 1": (Run(debug=True, lr=0.1, batch=1, data=1), [0.064370]),
    "own test 2": (Run(debug=True, lr=0.1, data=4), [0.085764, 0.000848]),
    "own test 3": (Run(debug=True, lr=0.1, data=5), [0.082442, 0.013636, 0.001983]),
    "own test 4": (
        Run(debug=True, lr=0.1, data=5, epochs=3),
        [
            *(0.082442, 0.013636, 0.001983),
            *(0.068620, 0.011475, 0.000386),
            *(0.062587, 0.010087, 0.000010),
        ],
    ),
}


@pytest.mark.parametrize("name", REFERENCE)
# torch's own sparse Adagrad warns about its own tensors.
@pytest.mark.filterwarnings("ignore:.*Sparse invariant checks.*:UserWarning")
def test_losses_are_those_of_the_public_reference(name: str) -> None:
    run, printed = REFERENCE[name]
    assert [f"{loss:.6f}" for loss in losses(run)] == [f"{loss:.6f}" for loss in printed]


@pytest.mark.parametrize(("dim", "width"), [(16, 367), (64, 415), (128, 479)])
def test_criteo_interaction_has_the_published_width(dim: int, width: int) -> None:
    assert Architecture(26, (13, dim), (1,)).interaction_width == width


@pytest.mark.parametrize(("interaction", "itself"), [("dot", False), ("dot", True), ("cat", False)])
def test_interaction_is_bottom_then_products_row_by_row(interaction: str, itself: bool) -> None:
    shape = Architecture(3, (4, 5), (1,), interaction, itself)  # type: ignore[arg-type]
    random = Random(0)
    bottom = torch.from_numpy(random.normal(size=(2, 5)).astype(np.float32))
    pooled = torch.from_numpy(random.normal(size=(2, 3, 5)).astype(np.float32))
    expected = []
    for b in range(2):
        vectors = [bottom[b], *pooled[b]]
        if interaction == "cat":
            expected.append(torch.cat(vectors))
            continue
        last = 1 if itself else 0
        pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + last)]
        expected.append(torch.cat([bottom[b], torch.stack(pairs)]))
    actual = DLRM(shape, random).interact(bottom, pooled)
    assert actual.shape == (2, shape.interaction_width)
    torch.testing.assert_close(actual, torch.stack(expected))


def test_parameters_are_counted_by_the_formula_and_buffers_are_not_saved() -> None:
    model = DLRM(Architecture(26, (13, 512, 256, 64, 16), (512, 256, 1)), Random(0))
    widths = [(13, 512), (512, 256), (256, 64), (64, 16), (367, 512), (512, 256), (256, 1)]
    assert sum(p.numel() for p in model.parameters()) == sum(n * m + m for n, m in widths)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_random_state_alone_decides_the_parameters() -> None:
    first, second, other = (
        DLRM(Architecture(2, (3, 4), (5, 1)), Random(seed)).state_dict() for seed in (1, 1, 2)
    )
    for name in first:
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], other[name])


def test_gradients_reach_dense_features_and_pooled_embeddings() -> None:
    model = DLRM(Architecture(2, (3, 4), (5, 1)), Random(1)).double()
    dense = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    pooled = torch.rand(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (dense, pooled))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (3, 4), (1,)), "expected positive numbers"),
        ((2, (3, 0), (1,)), "expected positive numbers"),
        ((2, (3,), (1,)), "expected at least the number of dense features"),
        ((2, (3, 4), (5,)), "expected the last to be 1"),
        ((2, (3, 4), ()), "expected the last to be 1"),
        ((2, (3, 4), (1,), "sum"), "expected 'dot' or 'cat'"),
    ],
)
def test_widths_that_do_not_fit_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Architecture(*arguments)  # type: ignore[arg-type]
