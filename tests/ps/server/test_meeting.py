"""Meetings: all workers of a job come to one point, and hear what rank 0 said there."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import pytest
from hypothesis import strategies as st

from ps.server.meeting import MOST_WORD_BYTES, Meetings
from storage.errors import RefusedError, UnavailableError
from tests.ps.server.waiting import Waiting

DEADLINE = 20.0


def soon() -> float:
    return time.monotonic() + 0.02


def later() -> float:
    return time.monotonic() + DEADLINE


def meet(
    meetings: Meetings,
    rank: int,
    number: int = 1,
    *,
    world: int = 2,
    word: bytes = b"",
    by: Callable[[], float] = soon,
    job: str = "job",
    start: str = "start",
) -> bytes:
    return meetings.meet(
        job, start, rank=rank, world=world, number=number, word=word, deadline=by()
    )


def test_all_hear_what_rank_0_said() -> None:
    meetings = Meetings()
    words = {rank: b"from %d" % rank for rank in (2, 0, 1)}
    waiting = [
        Waiting(
            meetings._condition, lambda r=r: meet(meetings, r, world=3, word=words[r], by=later)
        )
        for r in (2, 0)
    ]
    assert meet(meetings, 1, world=3, word=words[1]) == b"from 0"
    assert [each.result() for each in waiting] == [b"from 0", b"from 0"]


def test_who_comes_alone_needs_nobody() -> None:
    assert meet(Meetings(), 0, world=1, word=b"x") == b"x"


def test_after_the_deadline_those_who_are_missing_are_named() -> None:
    meetings = Meetings()
    with pytest.raises(UnavailableError, match=r"meeting 3: waited too long; ranks missing: 1, 2$"):
        meet(meetings, 0, 3, world=3)
    with pytest.raises(UnavailableError) as caught:
        meet(meetings, 0, 3, world=5000)
    assert str(caught.value).endswith("missing: 1, 2, 3, 4, 5, 6, 7, 8")


def test_who_waited_too_long_and_asks_again_is_not_missing_meanwhile() -> None:
    meetings = Meetings()
    with pytest.raises(UnavailableError):
        meet(meetings, 0, word=b"word")
    assert meet(meetings, 1) == b"word"
    assert meet(meetings, 0, word=b"word") == b"word"


def test_who_asks_again_for_an_answer_that_was_lost_hears_that_meeting_s_word() -> None:
    meetings = Meetings()
    first = Waiting(meetings._condition, lambda: meet(meetings, 0, 1, word=b"one", by=later))
    assert meet(meetings, 1, 1) == b"one"
    assert first.result() == b"one"
    # Rank 0 has gone on; the answer of rank 1 was lost.
    second = Waiting(meetings._condition, lambda: meet(meetings, 0, 2, word=b"two", by=later))
    assert meet(meetings, 1, 1) == b"one"
    assert meet(meetings, 1, 2) == b"two"
    assert second.result() == b"two"


def test_a_restarted_shard_lets_those_through_who_ask_again() -> None:
    meetings = Meetings()  # it was another one when all came to meeting 4
    ahead = Waiting(meetings._condition, lambda: meet(meetings, 0, 5, word=b"five", by=later))
    assert meet(meetings, 1, 4) == b""  # what was said there is gone
    assert meet(meetings, 1, 5) == ahead.result() == b"five"
    # Rank 0 itself brings its word along.
    again = Meetings()
    late = Waiting(again._condition, lambda: meet(again, 1, 5, by=later))
    assert meet(again, 0, 4, word=b"four") == b"four"
    assert meet(again, 0, 5, word=b"five") == late.result() == b"five"


def test_rounds_and_jobs_do_not_meet_each_other() -> None:
    meetings = Meetings()
    for job, start in (("job", "one"), ("job", "two"), ("other", "one")):
        with pytest.raises(UnavailableError):
            meet(meetings, 0, word=f"{job} {start}".encode(), job=job, start=start)
    assert meet(meetings, 1, job="job", start="two") == b"job two"
    assert meet(meetings, 1, job="other", start="one") == b"other one"


def test_of_many_rounds_only_some_are_kept_but_who_waits_is_not_forgotten() -> None:
    meetings = Meetings()
    waiting = Waiting(meetings._condition, lambda: meet(meetings, 0, word=b"kept", by=later))
    for other in range(300):
        assert meet(meetings, 0, world=1, word=b"x", start=f"short {other}") == b"x"
    assert len(meetings._rounds) <= 64
    assert meet(meetings, 1, by=later) == waiting.result() == b"kept"


def test_a_worker_that_was_started_anew_has_to_come_again() -> None:
    meetings = Meetings()
    with pytest.raises(UnavailableError):
        meet(meetings, 0, 3, word=b"of another job", job="other")
    with pytest.raises(UnavailableError, match="missing: 1, 2"):
        meet(meetings, 0, 3, world=3, word=b"word")
    waiting = Waiting(
        meetings._condition, lambda: meet(meetings, 2, 3, world=3, word=b"mine", by=later)
    )
    meetings.forget("job")
    # Rank 0 had come but asks no more; rank 2 still waits.
    with pytest.raises(UnavailableError, match=r"missing: 0$"):
        meet(meetings, 1, 3, world=3)
    assert meet(meetings, 0, 3, world=3, word=b"anew") == waiting.result() == b"anew"
    assert meet(meetings, 1, 3, job="other") == b"of another job"


def test_those_who_wait_when_a_round_is_forgotten_find_each_other() -> None:
    meetings = Meetings()
    waiting = [
        Waiting(meetings._condition, lambda r=r: meet(meetings, r, world=4, word=b"word", by=later))
        for r in range(3)
    ]
    meetings.forget("job")
    assert meet(meetings, 3, world=4, by=later) == b"word"
    assert [each.result() for each in waiting] == 3 * [b"word"]


def test_a_request_that_is_late_takes_nobody_back() -> None:
    meetings = Meetings()
    for number in (5, 3):
        with pytest.raises(UnavailableError):
            meet(meetings, 1, number, by=time.monotonic)
    assert meet(meetings, 0, 5, word=b"five") == b"five"


def test_words_are_bounded_in_length_and_number() -> None:
    meetings = Meetings()
    word = bytes(MOST_WORD_BYTES)
    for number in range(1, 20):
        assert meet(meetings, 0, number, world=1, word=word) == word
    for rank in range(1, 20):
        with pytest.raises(UnavailableError):
            meet(meetings, rank, 20, world=20, word=word, by=time.monotonic)
    (kept,) = meetings._rounds.values()
    assert 2 <= len(kept.words) <= 8
    with pytest.raises(RefusedError, match=f"{MOST_WORD_BYTES} bytes at most"):
        meet(meetings, 0, 20, word=word + b"x")


def test_draining_ends_every_wait_now_and_later() -> None:
    meetings = Meetings()
    waiting = Waiting(meetings._condition, lambda: meet(meetings, 0, word=b"word", by=later))
    meetings.drain()
    for call in (waiting.result, lambda: meet(meetings, 0, word=b"word", by=later)):
        with pytest.raises(UnavailableError, match="is being stopped; ranks missing: 1"):
            call()
    assert meet(meetings, 1) == b"word"  # who completes it goes on


@hypothesis.settings(max_examples=15)
@hypothesis.given(world=st.integers(1, 5), lost=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_workers_that_repeat_at_will_never_hear_another_meeting_s_word(
    world: int, lost: list[int]
) -> None:
    """Each goes through ten meetings and asks again for some that were answered already."""
    meetings = Meetings()

    def work(rank: int) -> list[bytes]:
        heard = []
        for number in range(1, 11):
            for _ in range(1 + (number * 7 + lost[rank]) % (1 + lost[rank])):
                word = b"%d of %d" % (number, rank)
                heard.append(meet(meetings, rank, number, world=world, word=word, by=later))
        return heard

    with ThreadPoolExecutor(world) as pool:
        for rank, heard in enumerate(pool.map(work, range(world))):
            repeats = [1 + (number * 7 + lost[rank]) % (1 + lost[rank]) for number in range(1, 11)]
            expected = [b"%d of 0" % n for n, count in enumerate(repeats, 1) for _ in range(count)]
            assert heard == expected
