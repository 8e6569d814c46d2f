"""Reports: what a command found, as one JSON object in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.errors import ConfigError


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write one JSON object to ``path`` (none: do nothing). NaN and infinity become null.

    Raises: ConfigError when the file cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(_plain(report), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written ({error.strerror})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
