"""Checksums are those of google-crc32c, with the instruction and without."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from storage import checksum
from storage.checksum import checksums


@pytest.mark.parametrize("instruction", [False, True])
@pytest.mark.parametrize("size", [4, 8, 12, 16, 4080, 8176])
def test_they_are_the_librarys(
    size: int, instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if instruction and not checksum.HAS_INSTRUCTION:
        pytest.skip("this processor has no CRC-32C instruction that the kernel knows")
    monkeypatch.setattr(checksum, "HAS_INSTRUCTION", instruction)
    values = np.random.default_rng(size).integers(0, 256, (7, size), np.uint8)
    expected = [google_crc32c.value(bytes(row[4:])) for row in values]
    assert checksums(values).tolist() == expected
    assert checksums(values[:0]).tolist() == []
