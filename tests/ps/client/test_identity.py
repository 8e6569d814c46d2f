"""Identity: the same name after a restart, another process every time."""

from __future__ import annotations

from ps.client.identity import Identity


def test_the_name_is_of_the_job_and_the_rank() -> None:
    assert Identity("train", 3, 4).client == "train-3"
    assert Identity("train", 3, 4, incarnation=7).client == "train-3"


def test_a_session_names_client_and_incarnation() -> None:
    session = Identity("train", 1, 2, incarnation=2**64 - 1).session
    assert (session.client, session.incarnation) == ("train-1", 2**64 - 1)


def test_processes_have_tokens_of_their_own_and_none_is_zero() -> None:
    tokens = {Identity("train").token for _ in range(100)}
    assert len(tokens) == 100 and 0 not in tokens and max(tokens) < 2**63


def test_reborn_is_the_same_worker_as_another_process() -> None:
    before = Identity("train", 1, 2, "round", incarnation=4)
    after = before.reborn(9)
    assert after.incarnation == 9 and after.token != before.token
    assert (after.client, after.rank, after.world, after.round) == ("train-1", 1, 2, "round")
