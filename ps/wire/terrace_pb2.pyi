from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Session(_message.Message):
    __slots__ = ("client", "incarnation")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    client: str
    incarnation: int
    def __init__(self, client: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("wire_version", "session", "token", "rank", "world", "tables", "partition_version", "shard", "shards", "last_sequence")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    PARTITION_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    session: Session
    token: int
    rank: int
    world: int
    tables: _containers.RepeatedScalarFieldContainer[str]
    partition_version: int
    shard: int
    shards: int
    last_sequence: int
    def __init__(self, wire_version: _Optional[int] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., token: _Optional[int] = ..., rank: _Optional[int] = ..., world: _Optional[int] = ..., tables: _Optional[_Iterable[str]] = ..., partition_version: _Optional[int] = ..., shard: _Optional[int] = ..., shards: _Optional[int] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class OpenReply(_message.Message):
    __slots__ = ("incarnation", "opened", "applied", "boot", "keeps", "marker", "rows")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    opened: bool
    applied: int
    boot: int
    keeps: bool
    marker: int
    rows: int
    def __init__(self, incarnation: _Optional[int] = ..., opened: _Optional[bool] = ..., applied: _Optional[int] = ..., boot: _Optional[int] = ..., keeps: _Optional[bool] = ..., marker: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("session", "table", "rows", "least_clock", "own_clock", "peek", "whole", "keys")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LEAST_CLOCK_FIELD_NUMBER: _ClassVar[int]
    OWN_CLOCK_FIELD_NUMBER: _ClassVar[int]
    PEEK_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    table: str
    rows: int
    least_clock: int
    own_clock: int
    peek: bool
    whole: bool
    keys: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., table: _Optional[str] = ..., rows: _Optional[int] = ..., least_clock: _Optional[int] = ..., own_clock: _Optional[int] = ..., peek: _Optional[bool] = ..., whole: _Optional[bool] = ..., keys: _Optional[bytes] = ...) -> None: ...

class PullReply(_message.Message):
    __slots__ = ("clock", "rows", "width", "boot", "steps", "missing", "values")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    clock: int
    rows: int
    width: int
    boot: int
    steps: bytes
    missing: bytes
    values: bytes
    def __init__(self, clock: _Optional[int] = ..., rows: _Optional[int] = ..., width: _Optional[int] = ..., boot: _Optional[int] = ..., steps: _Optional[bytes] = ..., missing: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("session", "sequence", "table", "rows", "step", "lr", "scale", "clock", "keys", "uses", "gradients")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    sequence: int
    table: str
    rows: int
    step: int
    lr: float
    scale: float
    clock: int
    keys: bytes
    uses: bytes
    gradients: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., sequence: _Optional[int] = ..., table: _Optional[str] = ..., rows: _Optional[int] = ..., step: _Optional[int] = ..., lr: _Optional[float] = ..., scale: _Optional[float] = ..., clock: _Optional[int] = ..., keys: _Optional[bytes] = ..., uses: _Optional[bytes] = ..., gradients: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("session", "sequence", "table", "rows", "width", "keys", "steps", "values")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    session: Session
    sequence: int
    table: str
    rows: int
    width: int
    keys: bytes
    steps: bytes
    values: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., sequence: _Optional[int] = ..., table: _Optional[str] = ..., rows: _Optional[int] = ..., width: _Optional[int] = ..., keys: _Optional[bytes] = ..., steps: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("session", "sequence", "table", "rows", "keys")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    sequence: int
    table: str
    rows: int
    keys: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., sequence: _Optional[int] = ..., table: _Optional[str] = ..., rows: _Optional[int] = ..., keys: _Optional[bytes] = ...) -> None: ...

class CutRequest(_message.Message):
    __slots__ = ("session", "closing")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    session: Session
    closing: bool
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., closing: _Optional[bool] = ...) -> None: ...

class ChangeReply(_message.Message):
    __slots__ = ("applied", "durable", "skipped", "boot", "wants_checkpoint")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    WANTS_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    applied: int
    durable: int
    skipped: int
    boot: int
    wants_checkpoint: bool
    def __init__(self, applied: _Optional[int] = ..., durable: _Optional[int] = ..., skipped: _Optional[int] = ..., boot: _Optional[int] = ..., wants_checkpoint: _Optional[bool] = ...) -> None: ...

class MeetRequest(_message.Message):
    __slots__ = ("session", "round", "number", "word")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WORD_FIELD_NUMBER: _ClassVar[int]
    session: Session
    round: str
    number: int
    word: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., round: _Optional[str] = ..., number: _Optional[int] = ..., word: _Optional[bytes] = ...) -> None: ...

class MeetReply(_message.Message):
    __slots__ = ("word",)
    WORD_FIELD_NUMBER: _ClassVar[int]
    word: bytes
    def __init__(self, word: _Optional[bytes] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("session", "step", "tree", "size", "offset", "last", "marker", "committed", "tensors")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TREE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MARKER_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    step: int
    tree: str
    size: int
    offset: int
    last: bool
    marker: bool
    committed: int
    tensors: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., step: _Optional[int] = ..., tree: _Optional[str] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., last: _Optional[bool] = ..., marker: _Optional[bool] = ..., committed: _Optional[int] = ..., tensors: _Optional[bytes] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("session", "step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    session: Session
    step: int
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class RewindRequest(_message.Message):
    __slots__ = ("session", "step")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    session: Session
    step: int
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class CheckpointReply(_message.Message):
    __slots__ = ("boot", "step")
    BOOT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    boot: int
    step: int
    def __init__(self, boot: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class LookRequest(_message.Message):
    __slots__ = ("what", "offset", "step", "session")
    WHAT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    what: str
    offset: int
    step: int
    session: Session
    def __init__(self, what: _Optional[str] = ..., offset: _Optional[int] = ..., step: _Optional[int] = ..., session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class LookReply(_message.Message):
    __slots__ = ("text", "size", "piece")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    text: str
    size: int
    piece: bytes
    def __init__(self, text: _Optional[str] = ..., size: _Optional[int] = ..., piece: _Optional[bytes] = ...) -> None: ...
