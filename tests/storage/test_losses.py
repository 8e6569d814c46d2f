"""Losses say what is lost, one line each."""

from __future__ import annotations

from storage.losses import Losses


def test_lines_name_table_block_and_rows() -> None:
    losses = Losses("ads")
    assert not losses and losses.lines() == [] and losses.rows == 0
    losses.blocks = {9: [1, 2, 3, 4, 5, 6], 4: [], 7: [8]}
    losses.unknown, losses.tombstones = [3], 2
    assert losses and losses.rows == 7
    assert losses.lines() == [
        "table 'ads': block 4 is damaged; no row in it counts",
        "table 'ads': block 7 is damaged: 1 rows, of keys 8",
        "table 'ads': block 9 is damaged: 6 rows, of keys 1, 2, 3, 4, 5, ...",
        "table 'ads': block 3 is damaged, and so are its keys in the directory: its rows are lost, "
        "which ones is not known",
        "table 'ads': 2 lists of deleted keys are damaged: rows of theirs may show again",
    ]
