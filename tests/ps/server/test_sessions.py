"""Sessions: each change once and in order, and who was shut out stays out, through any crash."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ps.server.session import Session
from ps.server.sessions import MOST_CLIENTS, Sessions
from ps.wire.status import ReopenError
from storage.errors import CorruptError, FencedError, RefusedError, UnavailableError
from tests.ps.server.waiting import Waiting

DEADLINE = 20.0


def soon() -> float:
    """A deadline for what must not be waited for."""
    return time.monotonic() + 0.02


def later() -> float:
    return time.monotonic() + DEADLINE


def opened(
    sessions: Sessions,
    client: str = "job-0",
    incarnation: int = 1,
    *,
    rank: int = 0,
    world: int = 1,
    awaited: int = 0,
) -> Session:
    token = 100 * incarnation
    return sessions.open(client, incarnation, token, rank=rank, world=world, awaited=awaited)


def advance(sessions: Sessions, session: Session, to: int) -> None:
    """Apply changes up to this sequence, a step each."""
    for sequence in range(session.applied + 1, to + 1):
        assert sessions.has_turn(session, sequence)
        sessions.applied(session, sequence, clock=sequence)


def restarted(sessions: Sessions, saved: bytes | None = None, **options: Any) -> Sessions:
    """As a process that was started after a crash sees it. saved: with the last cut."""
    return Sessions(saved, sessions.fences(), **options)


# -- who is in ---------------------------------------------------------------------------------


def test_a_new_incarnation_shuts_out_the_old_one_for_good() -> None:
    sessions = Sessions()
    assert sessions.known("job-0") == 0
    old = opened(sessions, incarnation=3)
    advance(sessions, old, 5)
    new = opened(sessions, incarnation=7)
    assert (sessions.known("job-0"), new.applied, new.clock) == (7, 0, 0)
    for refused in (
        lambda: opened(sessions, incarnation=3),
        lambda: opened(sessions, incarnation=6),
        lambda: sessions.get("job-0", 3),
        lambda: sessions.has_turn(old, 6),
        lambda: sessions.wait_turn(old, 6, soon()),
        lambda: sessions.wait_clock(old, 0, soon()),
    ):
        with pytest.raises(FencedError, match=r"'job-0'.*is 7, this one [36] is not") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert sessions.get("job-0", 7) is new


def test_of_two_processes_with_one_incarnation_the_first_is_in() -> None:
    sessions = Sessions()
    first = sessions.open("job-0", 1, 11, rank=0, world=1, awaited=0)
    for again in (sessions, restarted(sessions), restarted(sessions, sessions.save()[0])):
        with pytest.raises(FencedError, match="job-0"):
            again.open("job-0", 1, 12, rank=0, world=1, awaited=0)
        assert again.open("job-0", 1, 11, rank=0, world=1, awaited=0).incarnation == 1
    assert sessions.open("job-0", 1, 11, rank=0, world=1, awaited=0) is first


def test_a_session_that_is_not_open_has_to_be_opened() -> None:
    sessions = Sessions()
    with pytest.raises(ReopenError, match="no open session 1"):
        sessions.get("job-0", 1)
    opened(sessions)
    with pytest.raises(ReopenError, match="no open session 2"):
        sessions.get("job-0", 2)
    again = restarted(sessions)
    with pytest.raises(ReopenError, match="since the shard started"):
        again.get("job-0", 1)
    assert opened(again) is again.get("job-0", 1)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "\u00e9", 65 * "a", "a\n", "a\x00"])
def test_a_name_that_cannot_be_meant_is_refused(name: str) -> None:
    sessions = Sessions()
    for refused in (
        lambda: sessions.known(name),
        lambda: sessions.get(name, 1),
        lambda: opened(sessions, name),
    ):
        with pytest.raises(RefusedError, match="client: expected") as caught:
            refused()
        assert len(str(caught.value)) < 300
    assert json.loads(sessions.fences()) == []


@pytest.mark.parametrize(("rank", "world"), [(0, 0), (1, 1), (-1, 2), (0, MOST_CLIENTS + 1)])
def test_a_rank_outside_its_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(RefusedError, match=f"got {rank} of {world}"):
        opened(Sessions(), rank=rank, world=world)


def test_a_flood_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ps.server.sessions.MOST_CLIENTS", 3)
    sessions = Sessions()
    for name in ("a-0", "b-0", "c-0"):
        opened(sessions, name)
    with pytest.raises(RefusedError, match="3 clients are known"):
        opened(sessions, "d-0")
    opened(sessions, "b-0", 2)  # who is known may come again


def test_jobs_do_not_mind_each_other() -> None:
    sessions = Sessions()
    ours = opened(sessions, "night-run-0", rank=0, world=1)
    theirs = opened(sessions, "night-run-b-0", rank=0, world=2)
    alone, other = opened(sessions, "alice"), opened(sessions, "bob")
    assert [s.job for s in (ours, theirs, alone)] == ["night-run", "night-run-b", "alice"]
    advance(sessions, ours, 4)
    advance(sessions, alone, 2)
    assert sessions.wait_clock(ours, 4, soon()) == 4
    assert sessions.wait_clock(alone, 2, soon()) == 2
    assert sessions.least_clock(other) == sessions.least_clock(theirs) == 0


# -- changes -----------------------------------------------------------------------------------


def test_a_change_waits_for_those_before_it_and_one_that_is_repeated_does_not() -> None:
    sessions = Sessions()
    session = opened(sessions)
    third = Waiting(sessions._condition, lambda: sessions.wait_turn(session, 3, later()))
    assert sessions.wait_turn(session, 1, soon())
    advance(sessions, session, 2)
    assert third.result() is True
    assert sessions.wait_turn(session, 2, soon()) is False
    assert sessions.has_turn(session, 2) is False
    assert sessions.has_turn(session, 3) is True
    with pytest.raises(RefusedError, match="change 4 of job-0: expected 3"):
        sessions.has_turn(session, 4)


def test_a_change_whose_predecessor_does_not_come_names_it() -> None:
    sessions = Sessions()
    session = opened(sessions)
    with pytest.raises(UnavailableError, match="change 5 of job-0 came, but not 4"):
        sessions.wait_turn(session, 5, soon())


def test_who_waits_for_a_turn_is_told_that_it_was_shut_out() -> None:
    sessions = Sessions()
    old = opened(sessions)
    turn = Waiting(sessions._condition, lambda: sessions.wait_turn(old, 2, later()))
    opened(sessions, incarnation=2)
    with pytest.raises(FencedError):
        turn.result()


def test_a_thousand_changes_in_any_order_are_applied_in_theirs() -> None:
    sessions = Sessions()
    session = opened(sessions)
    order: list[int] = []
    owner = threading.Lock()

    def change(sequence: int) -> None:
        if sessions.wait_turn(session, sequence, later()):
            with owner:
                if sessions.has_turn(session, sequence):
                    order.append(sequence)
                    sessions.applied(session, sequence)

    with ThreadPoolExecutor(8) as pool:
        # Each twice, and up to seven ahead of its turn.
        groups = [list(range(at + 4, at, -1)) for at in range(0, 1000, 4)]
        list(pool.map(change, [s for group in groups for s in group + group]))
    assert order == list(range(1, 1001))
    assert session.applied == 1000


def test_rows_left_out_are_remembered_for_the_last_changes_only() -> None:
    sessions = Sessions()
    session = opened(sessions)
    for sequence in range(1, 500):
        sessions.applied(session, sequence, skipped=sequence % 2)
    assert session.skipped[499] == 1
    assert len(session.skipped) <= 64


# -- clocks ------------------------------------------------------------------------------------


def test_a_reader_waits_for_the_slowest_worker_of_its_job() -> None:
    sessions = Sessions()
    fast, slow = (opened(sessions, f"job-{r}", rank=r, world=2) for r in range(2))
    advance(sessions, fast, 9)
    advance(sessions, slow, 3)
    assert sessions.wait_clock(fast, 3, soon()) == sessions.least_clock(fast) == 3
    with pytest.raises(UnavailableError, match=r"waited for step 5 of job-1 at 3$"):
        sessions.wait_clock(fast, 5, soon())
    reader = Waiting(sessions._condition, lambda: sessions.wait_clock(fast, 5, later()))
    advance(sessions, slow, 5)
    assert reader.result() == 5


def test_a_worker_that_has_not_come_yet_is_waited_for_and_named() -> None:
    sessions = Sessions()
    first = opened(sessions, rank=0, world=8)
    advance(sessions, first, 1)
    with pytest.raises(UnavailableError) as caught:
        sessions.wait_clock(first, 1, soon())
    assert "worker 1 (not connected yet) at 0, worker 2" in str(caught.value)
    assert str(caught.value).endswith("and 3 more")
    reader = Waiting(sessions._condition, lambda: sessions.wait_clock(first, 1, later()))
    for rank in range(1, 8):
        advance(sessions, opened(sessions, f"job-{rank}", rank=rank, world=8), 1)
    assert reader.result() == 1


def test_nobody_waits_for_a_worker_that_ended_unless_it_comes_back() -> None:
    sessions = Sessions()
    first, second = (opened(sessions, f"job-{r}", rank=r, world=2) for r in range(2))
    advance(sessions, first, 4)
    reader = Waiting(sessions._condition, lambda: sessions.wait_clock(first, 4, later()))
    sessions.close(second)
    assert reader.result() == 4
    assert sessions.open_count == 1
    assert opened(sessions, "job-1", rank=1, world=2) is second
    assert sessions.least_clock(first) == 0
    assert sessions.open_count == 2


def test_where_all_have_ended_nobody_is_waited_for() -> None:
    sessions = Sessions()
    session = opened(sessions)
    advance(sessions, session, 3)
    sessions.close(session)
    assert sessions.wait_clock(session, 5, soon()) == sessions.least_clock(session) == 3


def test_of_a_job_that_became_smaller_nobody_waits_for_the_others() -> None:
    sessions = Sessions()
    for rank in range(3):
        opened(sessions, f"job-{rank}", rank=rank, world=3)
    first = opened(sessions, "job-0", 2, rank=0, world=1)
    advance(sessions, first, 1)
    assert sessions.wait_clock(first, 1, soon()) == 1
    # Nor after a crash, whoever of them had not ended at the last cut.
    again = restarted(sessions)
    first = opened(again, "job-0", 2, rank=0, world=1)
    assert again.wait_recovered(soon()) is False
    assert again.least_clock(first) == first.clock


def test_clocks_start_anew_after_going_back_and_never_fall_otherwise() -> None:
    sessions = Sessions()
    session = opened(sessions)
    sessions.applied(session, 1, clock=7)
    sessions.applied(session, 2)
    sessions.applied(session, 3, clock=2)
    assert session.clock == 7
    sessions.reset_clocks()
    assert (session.clock, session.applied) == (0, 3)


def test_who_waits_for_a_clock_is_told_that_it_was_shut_out() -> None:
    sessions = Sessions()
    old = opened(sessions)
    reader = Waiting(sessions._condition, lambda: sessions.wait_clock(old, 5, later()))
    opened(sessions, incarnation=2)
    with pytest.raises(FencedError):
        reader.result()


# -- after a restart ---------------------------------------------------------------------------


def crashed(*, cut_at: int, **options: Any) -> Sessions:
    """Two clients had come to 10 when the shard crashed; its last cut is older."""
    sessions = Sessions()
    both = [opened(sessions, f"job-{r}", rank=r, world=2) for r in range(2)]
    for session in both:
        advance(sessions, session, cut_at)
    saved, marks = sessions.save()
    sessions.saved(marks)
    for session in both:
        advance(sessions, session, 10)
        assert session.durable == cut_at
    return restarted(sessions, saved, **options)


def come_back(sessions: Sessions, rank: int) -> Session:
    return opened(sessions, f"job-{rank}", rank=rank, world=2, awaited=10)


def test_rows_are_read_once_every_client_has_repeated_what_is_lacking() -> None:
    sessions = crashed(cut_at=4)
    assert sessions.recovering == ["job-0", "job-1"]
    first = come_back(sessions, 0)
    assert (first.applied, first.durable, first.clock) == (4, 4, 4)
    reader = Waiting(sessions._condition, lambda: sessions.wait_recovered(later()))
    advance(sessions, first, 10)
    second = come_back(sessions, 1)
    advance(sessions, second, 9)
    assert sessions.recovering == ["job-1"]
    with pytest.raises(UnavailableError, match="waited for job-1 to repeat"):
        sessions.wait_recovered(soon())
    advance(sessions, second, 10)
    assert reader.result() is False
    assert sessions.wait_recovered(soon()) is False


def test_who_does_not_repeat_in_time_is_shut_out_for_good() -> None:
    sessions = crashed(cut_at=4, replay_seconds=0.05)
    first = come_back(sessions, 0)
    advance(sessions, first, 10)
    assert sessions.wait_recovered(later()) is True
    assert sessions.recovering == []
    for again in (sessions, restarted(sessions), restarted(sessions, sessions.save()[0])):
        with pytest.raises(FencedError, match="did not repeat its changes in time"):
            come_back(again, 1)
        assert opened(again, "job-1", 2, rank=1, world=2).applied == 0
    sessions.get("job-0", 1)


def test_who_is_shut_out_half_through_its_replay_is_told_while_it_waits() -> None:
    sessions = crashed(cut_at=4, replay_seconds=0.2)
    advance(sessions, come_back(sessions, 0), 10)
    second = come_back(sessions, 1)
    advance(sessions, second, 7)
    turn = Waiting(sessions._condition, lambda: sessions.wait_turn(second, 9, later()))
    assert sessions.wait_recovered(later()) is True
    with pytest.raises(FencedError):
        turn.result()
    with pytest.raises(FencedError):
        sessions.get("job-1", 1)


def test_who_comes_late_but_before_anybody_read_has_its_time_too() -> None:
    sessions = crashed(cut_at=4, replay_seconds=DEADLINE)
    advance(sessions, come_back(sessions, 0), 10)
    sessions._recover_by = time.monotonic() - 1  # so long was it away
    second = come_back(sessions, 1)
    with pytest.raises(UnavailableError, match="job-1"):
        sessions.wait_recovered(soon())
    advance(sessions, second, 10)
    assert sessions.wait_recovered(soon()) is False


def test_opening_again_long_after_the_start_makes_nobody_wait() -> None:
    """As after a broken connection: what is not applied is under way, and not lost."""
    sessions = Sessions(replay_seconds=0.0)
    session = opened(sessions)
    advance(sessions, session, 3)
    opened(sessions, awaited=5)
    assert sessions.wait_recovered(soon()) is False
    advance(sessions, session, 5)
    sessions = crashed(cut_at=4, replay_seconds=0.0)
    for rank in range(2):
        sessions._recover_by = later()
        advance(sessions, come_back(sessions, rank), 10)
    sessions._recover_by = 0.0
    opened(sessions, "job-1", rank=1, world=2, awaited=12)
    assert sessions.wait_recovered(soon()) is False


def test_a_new_process_is_not_asked_for_what_the_old_one_had() -> None:
    sessions = crashed(cut_at=4)
    for rank in range(2):
        opened(sessions, f"job-{rank}", 2, rank=rank, world=2)
    assert sessions.recovering == []
    assert sessions.wait_recovered(soon()) is False


def test_where_clients_keep_nothing_nobody_is_waited_for() -> None:
    sessions = crashed(cut_at=4, replays=False)
    assert sessions.recovering == []
    assert come_back(sessions, 0).awaited == 0
    assert sessions.wait_recovered(soon()) is False


def test_who_ended_before_the_cut_is_not_waited_for_after_a_restart() -> None:
    sessions = Sessions()
    session = opened(sessions)
    sessions.close(session)
    again = restarted(sessions, sessions.save()[0])
    assert again.recovering == []
    assert again.open_count == 0


def test_draining_ends_every_wait_now_and_later() -> None:
    sessions = crashed(cut_at=4)
    session = come_back(sessions, 0)
    calls: list[Callable[[], Any]] = [
        lambda: sessions.wait_turn(session, 9, later()),
        lambda: sessions.wait_clock(session, 9, later()),
        lambda: sessions.wait_recovered(later()),
    ]
    waits = [Waiting(sessions._condition, call) for call in calls]
    sessions.drain()
    for call in [*(wait.result for wait in waits), *calls]:
        with pytest.raises(UnavailableError, match="is being stopped"):
            call()
    # What need not wait goes on.
    assert sessions.wait_turn(session, 5, later()) is True


# -- durability --------------------------------------------------------------------------------


def test_what_came_between_the_saving_and_the_cut_is_not_taken_for_durable() -> None:
    sessions = Sessions()
    session = opened(sessions)
    advance(sessions, session, 3)
    saved, marks = sessions.save()
    advance(sessions, session, 5)
    sessions.saved(marks)
    assert (session.durable, session.applied) == (3, 5)
    assert opened(Sessions(saved)).applied == 3
    _, newer = sessions.save()
    sessions.saved(newer)
    sessions.saved(marks)  # told late
    assert session.durable == 5


def test_a_cut_of_the_old_process_makes_nothing_of_the_new_one_durable() -> None:
    sessions = Sessions()
    advance(sessions, opened(sessions), 9)
    _, marks = sessions.save()
    new = opened(sessions, incarnation=2)
    advance(sessions, new, 4)
    sessions.saved(marks)
    assert new.durable == 0


def test_a_process_that_came_after_the_cut_starts_at_its_own_first_change() -> None:
    sessions = Sessions()
    advance(sessions, opened(sessions), 9)
    saved, _ = sessions.save()
    opened(sessions, incarnation=2)
    again = restarted(sessions, saved)
    with pytest.raises(FencedError):
        opened(again, incarnation=1, awaited=12)
    assert opened(again, incarnation=2).applied == 0


@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"null", b"3", b'{"client": 1}', b"[1]", b"[{}]", b"\xff", b'[{"client": "a-0"}]'],
)
def test_what_cannot_be_read_is_called_damaged(broken: bytes) -> None:
    for arguments in ((broken, None), (None, broken)):
        with pytest.raises(CorruptError, match="restore a backup") as caught:
            Sessions(*arguments)
        assert "\n" not in str(caught.value)


# -- all of it against a model -----------------------------------------------------------------


@dataclass
class Known:
    """What the model knows of a client."""

    incarnation: int = 0
    token: int = 0
    fenced: bool = False
    applied: int = 0
    clock: int = 0
    sent: int = 0
    closed: bool = False
    opened: bool = False
    lacking: int = 0

    @property
    def is_in(self) -> bool:
        return self.incarnation > 0 and self.opened and not self.fenced


@dataclass
class Cut:
    """What is on the disk: the sessions at the last cut, the fences of whoever came last."""

    saved: bytes | None = None
    fences: bytes | None = None
    known: dict[str, tuple[int, int, int, bool]] = field(default_factory=dict)


CLIENTS = ("a-0", "a-1", "b-0")
RANKS = {"a-0": (0, 2), "a-1": (1, 2), "b-0": (0, 1)}


class SessionMachine(RuleBasedStateMachine):
    """Clients that die, repeat and lie, and a shard that crashes, against a dict of numbers."""

    clients = st.sampled_from(CLIENTS)

    def __init__(self) -> None:
        super().__init__()
        self.model = {client: Known() for client in CLIENTS}
        self.disk = Cut()
        self.ghosts: list[tuple[str, int, int, Session]] = []
        self.held: dict[str, Session] = {}

    @initialize(replays=st.booleans())
    def start(self, replays: bool) -> None:
        self.replays = replays
        self.sessions = Sessions(replays=replays, replay_seconds=3600.0)

    def _open(self, client: str, incarnation: int, token: int, awaited: int) -> Session:
        rank, world = RANKS[client]
        session = self.sessions.open(
            client, incarnation, token, rank=rank, world=world, awaited=awaited
        )
        self.disk.fences = self.sessions.fences()
        return session

    def _bury(self, client: str) -> None:
        known = self.model[client]
        if client in self.held:
            self.ghosts.append((client, known.incarnation, known.token, self.held.pop(client)))

    @rule(client=clients, ahead=st.integers(1, 3))
    def new_process(self, client: str, ahead: int) -> None:
        known = self.model[client]
        self._bury(client)
        incarnation = known.incarnation + ahead
        self.model[client] = Known(incarnation, 7 * incarnation, opened=True)
        self.held[client] = self._open(client, incarnation, 7 * incarnation, 0)

    @precondition(lambda self: any(k.incarnation for k in self.model.values()))
    @rule(client=clients)
    def open_again(self, client: str) -> None:
        known = self.model[client]
        if not known.incarnation:
            return
        if known.fenced:
            with pytest.raises(FencedError):
                self._open(client, known.incarnation, known.token, known.sent)
            return
        if not known.opened and self.replays:
            known.lacking = known.sent
        if not self.replays:
            known.sent = known.applied  # all went back to a checkpoint
        known.opened, known.closed = True, False
        self.held[client] = self._open(client, known.incarnation, known.token, known.sent)

    @rule(client=clients)
    def a_twin_tries(self, client: str) -> None:
        known = self.model[client]
        if known.incarnation:
            with pytest.raises(FencedError):
                self._open(client, known.incarnation, known.token + 1, 0)

    @rule(client=clients, count=st.integers(1, 4), steps=st.booleans())
    def change(self, client: str, count: int, steps: bool) -> None:
        known = self.model[client]
        if not known.is_in:
            return
        session = self.held[client]
        for _ in range(count):
            sequence = known.applied + 1
            assert self.sessions.wait_turn(session, sequence, soon())
            assert self.sessions.has_turn(session, sequence)
            known.clock += steps
            self.sessions.applied(session, sequence, clock=known.clock if steps else 0)
            known.applied, known.sent = sequence, max(known.sent, sequence)

    @rule(client=clients, back=st.integers(0, 5), gap=st.integers(2, 4))
    def repeat_and_skip(self, client: str, back: int, gap: int) -> None:
        known = self.model[client]
        if not known.is_in:
            return
        session = self.held[client]
        if known.applied:
            repeated = max(1, known.applied - back)
            assert self.sessions.wait_turn(session, repeated, 0.0) is False
            assert self.sessions.has_turn(session, repeated) is False
        with pytest.raises(UnavailableError):
            self.sessions.wait_turn(session, known.applied + gap, 0.0)
        with pytest.raises(RefusedError):
            self.sessions.has_turn(session, known.applied + gap)

    @rule(client=clients)
    def end(self, client: str) -> None:
        known = self.model[client]
        if known.is_in:
            self.sessions.close(self.held[client])
            known.closed = True

    @rule()
    def cut(self) -> None:
        self.disk.saved, marks = self.sessions.save()
        self.sessions.saved(marks)
        self.disk.known = {
            client: (known.incarnation, known.applied, known.clock, known.closed)
            for client, known in self.model.items()
        }

    @rule(client=clients, count=st.integers(1, 3))
    def change_while_a_cut_is_made(self, client: str, count: int) -> None:
        saved, marks = self.sessions.save()
        kept = {
            client: (known.incarnation, known.applied, known.clock, known.closed)
            for client, known in self.model.items()
        }
        self.change(client, count, True)
        self.sessions.saved(marks)
        self.disk.saved, self.disk.known = saved, kept

    @rule()
    def crash(self) -> None:
        for client in CLIENTS:
            self._bury(client)
        self.sessions = Sessions(
            self.disk.saved, self.disk.fences, replays=self.replays, replay_seconds=3600.0
        )
        for client, known in self.model.items():
            incarnation, applied, clock, closed = self.disk.known.get(client, (0, 0, 0, False))
            if incarnation != known.incarnation:
                applied, clock, closed = 0, 0, False
            known.applied, known.clock, known.closed = applied, clock, closed
            known.opened, known.lacking = False, 0

    @rule()
    def fence_by_the_deadline(self) -> None:
        late = self.late()
        self.sessions._recover_by = 0.0
        assert self.sessions.wait_recovered(later()) is bool(late)
        self.sessions._recover_by = later()
        for client in late:
            self.model[client].fenced = True
        self.disk.fences = self.sessions.fences()

    @rule(client=clients)
    def go_back(self, client: str) -> None:
        self.sessions.reset_clocks()
        for known in self.model.values():
            known.clock = 0

    def late(self) -> list[str]:
        return [
            client
            for client, known in self.model.items()
            if self.replays and known.incarnation and not (known.closed or known.fenced)
            if not known.opened or known.applied < known.lacking
        ]

    @invariant()
    def what_is_known_is_what_the_model_has(self) -> None:
        if not hasattr(self, "sessions"):
            return
        assert sorted(self.sessions.recovering) == sorted(self.late())
        for client, known in self.model.items():
            assert self.sessions.known(client) == known.incarnation
            if known.is_in:
                session = self.sessions.get(client, known.incarnation)
                assert session is self.held[client]
                assert (session.applied, session.clock) == (known.applied, known.clock)
                incarnation, applied, *_ = self.disk.known.get(client, (0, 0))
                durable = applied if incarnation == known.incarnation else 0
                assert session.durable == durable <= session.applied
            elif known.incarnation:
                with pytest.raises(FencedError if known.fenced else ReopenError):
                    self.sessions.get(client, known.incarnation)

    @invariant()
    def who_was_shut_out_never_gets_a_turn(self) -> None:
        for client, incarnation, token, session in self.ghosts:
            known = self.model[client]
            if incarnation == known.incarnation and not known.fenced:
                continue  # it was the shard that died
            for attempt in (
                lambda c=client, i=incarnation, t=token: self._open(c, i, t, 99),
                lambda c=client, i=incarnation: self.sessions.get(c, i),
            ):
                with pytest.raises(FencedError):
                    attempt()
            with pytest.raises(FencedError):
                self.sessions.has_turn(session, session.applied + 1)

    @invariant()
    def the_slowest_is_the_least_clock(self) -> None:
        for client, known in self.model.items():
            if not known.is_in:
                continue
            mates = [
                mate
                for name, mate in self.model.items()
                if name[0] == client[0] and not (mate.incarnation and mate.closed)
            ]
            least = min((mate.clock for mate in mates), default=known.clock)
            assert self.sessions.least_clock(self.held[client]) == least


SessionMachine.TestCase.settings = hypothesis.settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TestSessionsAreADict = SessionMachine.TestCase
