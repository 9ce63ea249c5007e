"""What several tests share: a job of one rank in the test's own process."""

from __future__ import annotations

import pytest


class OneRank:
    """Megatron-Core on a single process; layouts are entered as policies are built."""

    def __init__(self) -> None:
        from megatron_r1.platform.host import prepare, start_process_group

        self.host = prepare()
        start_process_group(self.host, timeout_minutes=5)

    def policy(self, config, *, seed: int = 7):
        from megatron_r1.models.policy import Policy
        from megatron_r1.parallel.layout import enter_layout

        layout = enter_layout(config.parallel, seed=1)
        return Policy(config.model, layout, config.precision, self.host, seed=seed)


@pytest.fixture(scope="session")
def one_rank() -> OneRank:
    return OneRank()
