"""Which rank is slower than the others, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Straggler:
    """The slowest rank in one measurement."""

    what: str
    rank: int
    host: str
    seconds: float
    excess_frac: float
    """How much longer it took than the median rank, as a fraction of that."""

    def describe(self) -> str:
        return (
            f"{self.what}: rank {self.rank} on {self.host} took {self.seconds:.4g} s, "
            f"{self.excess_frac:.0%} above the median"
        )


def slowest(what: str, seconds: Sequence[float], hosts: Sequence[str]) -> Straggler:
    """Args:
    seconds: of each rank, for the same work.
    """
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    middle = median(seconds)
    excess = seconds[rank] / middle - 1 if middle > 0 else 0.0
    return Straggler(what, rank, hosts[rank], seconds[rank], excess)
