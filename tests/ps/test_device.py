"""Updates by torch operations: on the CPU the bits of the host kernels, elsewhere their results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ps.device import apply_tensors, merge_tensors
from ps.gradient import group, merge
from ps.optimizer import FTRL, SGD, Adagrad, Adam, Optimizer, RowWiseAdagrad, RowWiseAdam
from ps.update import apply_rows

SIX: list[Optimizer] = [
    SGD(0.05, weight_decay=0.01),
    Adagrad(0.05, lr_decay=0.1, initial_accumulator_value=0.1),
    RowWiseAdagrad(0.05),
    Adam(0.01),
    RowWiseAdam(0.01),
    FTRL(0.1, l1=0.01, l2=0.1),
]
any_optimizer = pytest.mark.parametrize("optimizer", SIX, ids=lambda each: each.name)
CAPACITY = 40


def run_both(
    optimizer: Optimizer, dim: int, seed: int, device: str, steps: int = 3
) -> tuple[torch.Tensor, ...]:
    """Embeddings and state of the host's kernel, then those of the device's operations."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((CAPACITY, dim)).astype(np.float32)
    width = optimizer.state_width(dim)
    state = np.full((CAPACITY, width), optimizer.initial_state, np.float32)
    marks = np.zeros(CAPACITY, np.uint32), np.zeros(CAPACITY, np.uint8)
    on_device = torch.tensor(embeddings, device=device), torch.tensor(state, device=device)
    for step in range(1, steps + 1):
        positions = rng.permutation(CAPACITY)[: rng.integers(0, CAPACITY)]
        gradients = rng.standard_normal((len(positions), dim)).astype(np.float32)
        if len(positions) > 2:
            gradients[1, dim // 2], gradients[2, 0] = np.nan, np.inf
        constants = optimizer.hyper(lr=0.02, step=step)
        skipped = apply_rows(
            optimizer.kind,
            constants,
            step,
            0.3,
            embeddings,
            state,
            *marks,
            positions,
            gradients,
            0,
            len(positions),
        )
        was_skipped = apply_tensors(
            optimizer,
            *on_device,
            torch.from_numpy(positions).to(device),
            torch.from_numpy(gradients).to(device),
            lr=0.02,
            step=step,
            scale=0.3,
        )
        assert int(was_skipped.sum()) == skipped
        assert was_skipped.shape == (len(positions),)
    return torch.from_numpy(embeddings), torch.from_numpy(state), *(t.cpu() for t in on_device)


@any_optimizer
@given(dim=st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 513])), seed=st.integers(0, 999))
def test_bits_on_the_cpu_are_those_of_the_host_kernels(
    optimizer: Optimizer, dim: int, seed: int
) -> None:
    embeddings, state, *ours = run_both(optimizer, dim, seed, "cpu")
    assert torch.equal(embeddings.view(torch.int32), ours[0].view(torch.int32))
    assert torch.equal(state.view(torch.int32), ours[1].view(torch.int32))


@pytest.mark.cuda
@any_optimizer
@pytest.mark.parametrize("dim", [1, 13, 64])
def test_results_on_cuda_are_those_of_the_host_kernels(optimizer: Optimizer, dim: int) -> None:
    embeddings, state, *ours = run_both(optimizer, dim, 0, "cuda", steps=20)
    torch.testing.assert_close(ours[0], embeddings, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1], state, rtol=1e-6, atol=1e-6)


@any_optimizer
def test_a_row_does_not_depend_on_its_company(optimizer: Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100, 33, generator=generator)
    gradients = torch.randn(100, 33, generator=generator)
    together, alone = start.clone(), start.clone()
    width = optimizer.state_width(33)
    states = [torch.full((100, width), optimizer.initial_state) for _ in range(2)]
    apply_tensors(optimizer, together, states[0], torch.arange(100), gradients, lr=0.1, step=1)
    for row in range(100):
        chosen = torch.tensor([row])
        apply_tensors(optimizer, alone, states[1], chosen, gradients[chosen], lr=0.1, step=1)
    assert torch.equal(together, alone) and torch.equal(*states)


def test_scale_may_be_a_tensor_that_the_host_never_reads() -> None:
    tables = torch.ones(2, 3, 4)
    for table, scale in zip(tables, (0.5, torch.tensor(0.5)), strict=True):
        skipped = apply_tensors(
            SGD(),
            table,
            torch.empty(3, 0),
            torch.tensor([1]),
            torch.ones(1, 4),
            lr=0.5,
            step=1,
            scale=scale,
        )
        assert not skipped.any()
    assert tables[0].tolist() == tables[1].tolist() == [[1] * 4, [0.75] * 4, [1] * 4]


@given(
    seed=st.integers(0, 999),
    accesses=st.integers(0, 80),
    weighted=st.booleans(),
    index=st.sampled_from([torch.int32, torch.int64]),
)
def test_merged_bits_are_those_of_the_host(
    seed: int, accesses: int, weighted: bool, index: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    inverse, bags = rng.integers(0, 9, accesses), np.sort(rng.integers(0, 20, accesses))
    gradient = rng.standard_normal((20, 11)).astype(np.float32)
    weights = rng.standard_normal(accesses if weighted else 0).astype(np.float32)
    expected = np.zeros((9, 11), np.float32)
    merge(*group(inverse, 9), bags, weights, gradient, expected, 0, 9)
    merged = merge_tensors(
        torch.from_numpy(inverse).to(index),
        torch.from_numpy(bags).to(index),
        torch.from_numpy(weights) if weighted else None,
        torch.from_numpy(gradient),
        9,
    )
    assert merged.numpy().tobytes() == expected.tobytes()
