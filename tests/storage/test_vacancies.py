"""Vacancies: a stack, against a list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.vacancies import Vacancies

SIZE = 20


@given(st.lists(st.one_of(st.integers(0, 9), st.sets(st.integers(0, SIZE - 1)), st.none())))
def test_it_is_a_stack(does: list[int | set[int] | None]) -> None:
    """Numbers take so many, sets give those that are not free back, None clears."""
    vacancies, stack = Vacancies(np.zeros(SIZE, np.uint64)), list[int]()
    for one in does:
        if one is None:
            vacancies.clear()
            stack.clear()
        elif isinstance(one, int):
            wanted = stack[len(stack) - min(one, len(stack)) :][::-1]
            del stack[len(stack) - len(wanted) :]
            assert vacancies.pop(one).tolist() == wanted
        else:
            free = [position for position in one if position not in stack]
            vacancies.push(np.array(free, np.int64))
            stack += free
        assert len(vacancies) == len(stack)
        held = vacancies.occupied(SIZE)
        assert np.flatnonzero(~held).tolist() == sorted(stack)
