"""SparseOptimizer is a torch.optim.Optimizer to everything in torch that takes one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

import ps
import worker
from ps.optimizer import Optimizer
from ps.store import Store
from storage.errors import ConfigError, MismatchError, NonFiniteError

ROWS, DIM = 30, 4
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, ROWS, (8, 3)))


class Twin:
    """A store of two tables beside the same model in dense torch parameters."""

    def __init__(self, path: Path, optimizer: Optimizer | None = None, **options: str) -> None:
        self.tables = [
            ps.Table(name, dim=DIM, optimizer=optimizer or ps.SGD(lr=0.1), rows=ROWS,
                     init=ps.Normal(1.0)) for name in ("a", "b")
        ]  # fmt: skip
        self.store = ps.open(path, self.tables, ram="4MiB", threads=1)
        self.bags = [worker.EmbeddingBag(self.store, name) for name in ("a", "b")]
        self.sparse = worker.SparseOptimizer(self.store, **options)
        self.weights = [nn.Parameter(torch.from_numpy(rows)) for rows in self.rows()]
        torch.manual_seed(0)
        self.linear = nn.Linear(DIM, 1)
        self.twin_linear = copy.deepcopy(self.linear)

    def rows(self) -> list[np.ndarray]:
        return [self.store.read(name, torch.arange(ROWS)) for name in ("a", "b")]

    def loss(self, ids: Tensor = IDS) -> Tensor:
        return self.linear(self.bags[0](ids) * 3 + self.bags[1](ids)).square().mean()

    def twin_loss(self, ids: Tensor = IDS) -> Tensor:
        pooled = [nn.functional.embedding_bag(ids, w, mode="sum") for w in self.weights]
        return self.twin_linear(pooled[0] * 3 + pooled[1]).square().mean()

    def assert_same(self) -> None:
        for rows, weight in zip(self.rows(), self.weights, strict=True):
            np.testing.assert_allclose(rows, weight.detach().numpy(), rtol=1e-5, atol=1e-6)

    @property
    def pinned(self) -> int:
        self.store.settle()
        return sum(stack.top.pinned for stack in self.store.stacks.values())


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Twin]:
    twin = Twin(tmp_path)
    yield twin
    twin.sparse.zero_grad()
    assert twin.pinned == 0
    twin.store.close()


def test_it_is_an_optimizer_with_a_group_a_table(twin: Twin) -> None:
    assert isinstance(twin.sparse, torch.optim.Optimizer)
    assert [(g["table"], g["lr"], g["steps"]) for g in twin.sparse.param_groups] == [
        ("a", 0.1, 0),
        ("b", 0.1, 0),
    ]
    faster = worker.SparseOptimizer(twin.store, lr=0.5)
    assert [group["lr"] for group in faster.param_groups] == [0.5, 0.5]
    with pytest.raises(ConfigError, match="on_nan"):
        worker.SparseOptimizer(twin.store, on_nan="ignore")


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: StepLR(o, step_size=2, gamma=0.5),
        lambda o: LambdaLR(o, lambda step: min(1.0, step / 3)),  # starts at 0
    ],
)
def test_schedulers_change_the_rate_of_the_next_step(
    twin: Twin, schedule: Callable[[torch.optim.Optimizer], StepLR]
) -> None:
    dense = torch.optim.SGD(twin.weights, lr=0.1)
    schedulers = [schedule(twin.sparse), schedule(dense)]
    for _ in range(6):
        for loss, optimizer in ((twin.loss(), twin.sparse), (twin.twin_loss(), dense)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        assert [g["lr"] for g in twin.sparse.param_groups] == [dense.param_groups[0]["lr"]] * 2
        twin.assert_same()


def test_a_plateau_scheduler_works_too(twin: Twin) -> None:
    scheduler = ReduceLROnPlateau(twin.sparse, factor=0.1, patience=0)
    for value in (1.0, 2.0):
        twin.loss().backward()
        twin.sparse.step()
        scheduler.step(value)
    assert twin.sparse.param_groups[1]["lr"] == pytest.approx(0.01)


def test_a_rate_that_cannot_be_meant_is_refused_before_any_row_changes(twin: Twin) -> None:
    before = twin.rows()
    twin.sparse.param_groups[1]["lr"] = float("nan")
    twin.loss().backward()
    with pytest.raises(ConfigError, match="lr"):
        twin.sparse.step()
    assert np.array_equal(twin.rows(), before)
    assert [group["steps"] for group in twin.sparse.param_groups] == [0, 0]
    twin.sparse.param_groups[1]["lr"] = 0.1  # nothing was forgotten
    twin.twin_loss().backward()
    torch.optim.SGD(twin.weights, lr=0.1).step()
    twin.sparse.step()
    twin.assert_same()


def test_grad_scaler_scales_and_unscales(twin: Twin) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    dense = torch.optim.SGD(twin.linear.parameters(), lr=0.1)
    twin_dense = torch.optim.SGD([*twin.weights, *twin.twin_linear.parameters()], lr=0.1)
    for _ in range(3):
        for optimizer in (twin.sparse, dense, twin_dense):
            optimizer.zero_grad()
        scaler.scale(twin.loss()).backward()
        scaler.step(twin.sparse)
        scaler.step(dense)
        scaler.update()
        twin.twin_loss().backward()
        twin_dense.step()
        twin.assert_same()
    assert scaler.get_scale() == 1024.0


def test_grad_scaler_leaves_a_step_with_infinity_out(twin: Twin) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = twin.rows()
    scaler.scale(twin.loss() * torch.inf).backward()
    scaler.step(twin.sparse)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert np.array_equal(twin.rows(), before)
    assert [group["steps"] for group in twin.sparse.param_groups] == [0, 0]
    twin.sparse.zero_grad()
    assert twin.pinned == 0
    scaler.scale(twin.loss()).backward()
    scaler.step(twin.sparse)
    twin.twin_loss().backward()
    torch.optim.SGD(twin.weights, lr=0.1).step()
    twin.assert_same()


def test_accumulated_gradients_are_those_of_torch(twin: Twin) -> None:
    dense = torch.optim.SGD(twin.weights, lr=0.1)
    for start in (0, 3, 5):
        (twin.loss(IDS[start : start + 3]) / 3).backward()
        (twin.twin_loss(IDS[start : start + 3]) / 3).backward()
    assert twin.pinned > 0
    twin.sparse.step()
    dense.step()
    twin.assert_same()
    assert twin.pinned == 0
    assert [group["steps"] for group in twin.sparse.param_groups] == [1, 1]


@pytest.mark.parametrize("most", [0.01, 1.0, 1e9])
@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_clipping_by_the_global_norm_is_that_of_torch(
    twin: Twin, most: float, scale: float
) -> None:
    dense = torch.optim.SGD(twin.linear.parameters(), lr=0.1)
    twin_dense = torch.optim.SGD([*twin.weights, *twin.twin_linear.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1.0)
    for _ in range(2):  # accumulated: duplicates of a row across passes are summed before
        scaler.scale(twin.loss()).backward()
        twin.twin_loss().backward()
    scaler.unscale_(twin.sparse)
    scaler.unscale_(dense)
    found = worker.clip_grad_norm_(twin.linear.parameters(), twin.sparse, most)
    expected = nn.utils.clip_grad_norm_([*twin.weights, *twin.twin_linear.parameters()], most)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    scaler.step(twin.sparse)
    scaler.step(dense)
    twin_dense.step()
    twin.assert_same()
    torch.testing.assert_close(twin.linear.weight, twin.twin_linear.weight)


def test_clipping_takes_one_tensor_as_torch_does(twin: Twin) -> None:
    twin.loss().backward()
    twin.twin_loss().backward()
    found = worker.clip_grad_norm_(twin.linear.weight, twin.sparse, 1e9)
    expected = nn.utils.clip_grad_norm_([*twin.weights, twin.twin_linear.weight], 1e9)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(twin.sparse.norm()) < float(found)


def test_the_norm_without_gradients_is_zero(twin: Twin) -> None:
    assert float(twin.sparse.norm()) == 0
    twin.sparse.scale(0.5)
    twin.sparse.step()
    assert [group["steps"] for group in twin.sparse.param_groups] == [0, 0]


def test_a_bad_gradient_stops_before_any_row_changes(twin: Twin) -> None:
    before = twin.rows()
    (twin.loss() * torch.nan).backward()
    with pytest.raises(NonFiniteError, match=r"'[ab]'") as caught:
        twin.sparse.step()
    assert "\n" not in str(caught.value)
    assert np.array_equal(twin.rows(), before)
    assert twin.pinned == 0
    assert twin.sparse.bad_gradients == 1
    twin.loss().backward()
    twin.sparse.step()


def test_or_just_the_rows_it_reaches_are_skipped_and_counted(tmp_path: Path) -> None:
    twin = Twin(tmp_path, on_nan="skip")
    with twin.store:
        before = torch.from_numpy(twin.rows()[0])
        bag = twin.bags[0]
        slope = torch.ones(2, DIM)
        slope[1, 2] = torch.inf
        (bag(torch.tensor([[1, 2], [2, 3]])) * slope).sum().backward()
        twin.sparse.step()
        after = torch.from_numpy(twin.rows()[0])
        assert torch.allclose(after[1], before[1] - 0.1)
        assert torch.equal(after[2:], before[2:])
        assert (twin.sparse.skipped_rows, twin.sparse.bad_gradients) == (2, 1)
        assert twin.pinned == 0


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_forgets_and_lets_the_rows_go(twin: Twin, to_none: bool) -> None:
    before = twin.rows()
    twin.loss().backward()
    assert twin.pinned > 0
    twin.sparse.zero_grad(set_to_none=to_none)
    assert twin.pinned == 0
    twin.sparse.step()
    assert np.array_equal(twin.rows(), before)
    twin.loss().backward()
    twin.twin_loss().backward()
    twin.sparse.step()
    torch.optim.SGD(twin.weights, lr=0.1).step()
    twin.assert_same()


def test_an_anchor_whose_grad_was_cleared_is_an_error_before_any_row_changes(twin: Twin) -> None:
    before = twin.rows()
    twin.loss().backward()
    twin.store.anchors["b"].grad = None
    with pytest.raises(ConfigError, match="zero_grad"):
        twin.sparse.step()
    assert np.array_equal(twin.rows(), before)


def test_a_closure_is_run_with_gradients_and_its_loss_returned(twin: Twin) -> None:
    def closure() -> Tensor:
        twin.sparse.zero_grad()
        loss = twin.loss()
        loss.backward()
        return loss

    expected = twin.loss().item()
    assert twin.sparse.step(closure).item() == expected
    twin.twin_loss().backward()
    torch.optim.SGD(twin.weights, lr=0.1).step()
    twin.assert_same()


def test_steps_count_for_bias_correction_and_survive_a_checkpoint(tmp_path: Path) -> None:
    """Adam's correction needs the step: a run that is resumed goes on with the same bits."""
    twin = Twin(tmp_path, ps.Adam(lr=0.1))
    with twin.store:
        scheduler = StepLR(twin.sparse, 2, 0.5)
        for step in range(6):
            if step == 3:
                parts = {"sparse": twin.sparse, "scheduler": scheduler}
                state = {name: part.state_dict() for name, part in parts.items()}
                twin.store.checkpoint(step, state)
            twin.loss().backward()
            twin.sparse.step()
            scheduler.step()
        undisturbed = twin.rows()
        _, state = twin.store.resume()
        sparse = worker.SparseOptimizer(twin.store, lr=99.0)
        scheduler = StepLR(sparse, 2, 0.5)
        sparse.load_state_dict(state["sparse"])
        scheduler.load_state_dict(state["scheduler"])
        assert [(g["steps"], g["lr"]) for g in sparse.param_groups] == [(3, 0.05)] * 2
        for _ in range(3):
            twin.loss().backward()
            sparse.step()
            scheduler.step()
        assert np.array_equal(twin.rows(), undisturbed)


def test_state_is_matched_by_table_and_not_by_order(twin: Twin, tmp_path: Path) -> None:
    twin.sparse.param_groups[0].update(lr=7.0, steps=5)
    state = twin.sparse.state_dict()
    with ps.open(tmp_path / "other", twin.tables[::-1], ram="4MiB", threads=1) as store:
        other = worker.SparseOptimizer(store)
        other.load_state_dict(state)
        found = {g["table"]: (g["lr"], g["steps"]) for g in other.param_groups}
        assert found == {"a": (7.0, 5), "b": (0.1, 0)}
        for group in other.param_groups:
            assert group["params"][0] is store.anchors[group["table"]]
    with (
        ps.open(tmp_path / "third", twin.tables[:1], ram="4MiB", threads=1) as store,
        pytest.raises(MismatchError, match="'b'"),
    ):
        worker.SparseOptimizer(store).load_state_dict(state)


def test_tables_without_gradients_do_not_step(twin: Twin) -> None:
    twin.bags[1](IDS).sum().backward()
    twin.sparse.step()
    assert [group["steps"] for group in twin.sparse.param_groups] == [0, 1]


def test_hooks_and_adding_to_a_dense_loop_work(twin: Twin) -> None:
    seen: list[str] = []
    twin.sparse.register_step_pre_hook(lambda *_: seen.append("before"))
    twin.sparse.register_step_post_hook(lambda *_: seen.append("after"))
    twin.loss().backward()
    twin.sparse.step()
    assert seen == ["before", "after"]


def test_a_store_used_without_backward_has_nothing_to_step(twin: Twin) -> None:
    store: Store = twin.store
    with torch.no_grad():
        twin.loss()
    twin.sparse.step()
    assert not store.waiting
