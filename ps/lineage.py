"""Lineage: names of all checkpoints that a log ever had, so that two logs can tell what they share.

Every opening of a store draws a random token, and its first checkpoint notes from which number on
checkpoints are made under it. A number comes again only where newer checkpoints were discarded, and
then under another token; one process at a time has a store. So number and token name one checkpoint
for good: a copy of a store that goes on by itself goes on under another token. A log whose lineage
has a checkpoint of that name has, below the ends of that checkpoint, the very same blocks, but for
those that it has freed since: blocks are never changed, and going back to it uses no number of a
block below its ends anew.

Who moves or changes blocks below a checkpoint in another way (compaction of a closed store, repair)
must leave the fact "lineage" out of the new log. It is then another log, and gets a lineage of its
own. So does a store of an older version.

Threads: one owner.
"""

from __future__ import annotations

import json
import secrets

from storage.environment import Environment

FACT = "lineage"


class Lineage:
    """See the module's docstring; as the facts of ``log`` have it now.

    Raises: CorruptError when it is damaged.
    """

    def __init__(self, log: Environment) -> None:
        found = log.fact(FACT)
        self._token = secrets.token_hex(8)
        self._openings: list[tuple[int, str]] = [
            (int(number), str(token)) for number, token in json.loads(found or b"[]")
        ]

    def facts_with(self, number: int) -> dict[str, bytes | None]:
        """What to commit together with checkpoint ``number``, made now. 30 bytes an opening."""
        openings = self._openings
        if not openings or openings[-1][1] != self._token:
            openings = [*openings, (number, self._token)]
        return {FACT: json.dumps(openings).encode()}

    def note(self, number: int) -> None:
        """What `facts_with` said of this number is committed."""
        if not self._openings or self._openings[-1][1] != self._token:
            self._openings.append((number, self._token))

    def token(self, number: int) -> str:
        """The token that checkpoint ``number`` was made under; "" when that is not known."""
        return next((token for first, token in reversed(self._openings) if first <= number), "")
