"""Whether servers hold what was published: their labels, and checksums of their tensors."""

from __future__ import annotations

import time
from collections.abc import Sequence

from megatron_r1.rollout.server_api import checksums, load_files, side_by_side, weight_label
from megatron_r1.rollout.servers import Weights
from megatron_r1.weights.transport import SendError


def check_labels(urls: Sequence[str], label: str, *, timeout_s: float) -> None:
    """All servers say that they hold this.

    Raises:
        SendError: with those that do not.
    """

    def check(url: str) -> None:
        found = weight_label(url, timeout_s=timeout_s)
        if found != label:
            raise SendError(f"{url} holds weights {found!r} after {label!r} were sent", [url])

    side_by_side(urls, check)


def check_weights(
    urls: Sequence[str],
    *,
    by_buckets: Sequence[str],
    files: Weights | None,
    may_be_unlike: bool,
    timeout_s: float,
    silence_s: float,
) -> None:
    """Every server holds what one holds that has read the same weights from files.

    Where none has, and there are files of these weights, one that got buckets reads them after its
    checksums were taken. Where there are none, servers are compared with each other; one alone with
    nothing.

    Args:
        by_buckets: the servers that weights were sent to in buckets; the others have read files.
        files: what the trainer wrote of the same weights, where servers can read it.
        may_be_unlike: servers can differ in layout, and then in their tensors. Only those with the
            same tensors are compared.
        timeout_s: for all of it.
        silence_s: see `call_long`.
    Raises:
        SendError: two hold different weights.
    """
    deadline_s = time.monotonic() + timeout_s

    def limits() -> dict[str, float]:
        return {"timeout_s": max(deadline_s - time.monotonic(), 0.1), "silence_s": silence_s}

    def held_by(url: str) -> dict[str, str]:
        return checksums(url, **limits())

    ordered = [url for url in urls if url not in by_buckets] + [*by_buckets]
    reads = files is not None and len(by_buckets) == len(urls)
    if len(urls) == 1 and not reads:
        return
    held = dict(zip(ordered, side_by_side(ordered, held_by), strict=True))
    expected_of: dict[frozenset[str], tuple[str, dict[str, str]]] = {}
    if reads:
        assert not may_be_unlike, "one server reads files for all"
        reader = ordered[0]
        load_files(reader, files.directory, files.label, **limits())
        expected_of[frozenset()] = str(files.directory), held_by(reader)
    for url, found in held.items():
        kind = frozenset(found) if may_be_unlike else frozenset()
        source, expected = expected_of.setdefault(kind, (url, found))
        if found != expected:
            name = min(found.items() ^ expected.items())[0]
            raise SendError(
                f"{url} and {source} hold different weights, in {name} at least",
                [url] if source not in urls else [url, source],
            )
