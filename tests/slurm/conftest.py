"""One private Slurm for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.private_slurm import PrivateSlurm, missing


@pytest.fixture(scope="session")
def slurm() -> Iterator[PrivateSlurm]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    cluster = PrivateSlurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
