"""What the tests of this folder share: ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.worlds import Worlds


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    started = Worlds()
    yield started
    started.close()
