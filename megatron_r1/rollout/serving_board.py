"""Where the trainer of a job and the nodes that serve it read what the other has to say.

Files of a directory that all nodes share, each written by one side and replaced as a whole:

    wanted.json    trainer: from which weights servers are started, and what they are called
    node_<i>.json  serving node i: its servers, and which weights they were last brought up for
    beat           trainer: a number that changes while it lives
    paused         trainer: servers are paused, while it is there
    failing.json   trainer: servers that give unusable answers, and since when
    end            trainer: no more rollouts
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_r1.rollout.servers import Weights
from megatron_r1.telemetry.files import replace_file, write_json

ENGINE = "engine"
"""Folder of the run directory: logs of the rollout servers, and the weights on their way there."""
BOARD = "board"
"""Folder in it, with one board for each start of the job."""


@dataclass(frozen=True)
class NodeReport:
    """What a serving node says of itself."""

    label: str | None = None
    """Weights that all of its servers were last brought up for."""
    urls: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    """Those of them that were started from these weights."""
    num_restarts: int = 0
    failure: str | None = None
    """Why it gave up."""
    attempt: int = 0
    """The trainer's, at the weights with this label, that is answered."""
    has_ended: bool = False
    """Its servers are gone, as they were asked to be."""


@dataclass(frozen=True)
class Wanted:
    """What the trainer asks every serving node for."""

    weights: Weights
    attempt: int
    """Differs where the same weights are wanted again; see `Servers.bring_up`."""
    at_fault: tuple[str, ...]
    """URLs of servers that are started anew whatever they answer."""

    @property
    def name(self) -> tuple[str, int]:
        return self.weights.label, self.attempt


class ServingBoard:
    """One start of one job; the next start has another directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def want(self, weights: Weights, *, attempt: int = 0, at_fault: Sequence[str] = ()) -> None:
        """See `Wanted`."""
        write_json(
            self.directory / "wanted.json",
            {
                "directory": str(weights.directory),
                "label": weights.label,
                "attempt": attempt,
                "at_fault": list(at_fault),
            },
        )

    def wanted(self) -> Wanted | None:
        found = _read(self.directory / "wanted.json")
        if found is None:
            return None
        weights = Weights(Path(found["directory"]), found["label"])
        return Wanted(weights, found["attempt"], tuple(found["at_fault"]))

    def hold(self, paused: bool) -> None:
        """Say that servers are paused, or no longer: they answer to orders alone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "paused"
        path.touch() if paused else path.unlink(missing_ok=True)

    @property
    def is_held(self) -> bool:
        return (self.directory / "paused").exists()

    def complain(self, failing: Mapping[str, float]) -> None:
        """See `ServerSet.look_after`; the last complaint of each server counts."""
        write_json(self.directory / "failing.json", dict(failing))

    def failing(self) -> dict[str, float]:
        return _read(self.directory / "failing.json") or {}

    def report(self, node: int, report: NodeReport) -> None:
        write_json(self._node(node), asdict(report))

    def report_of(self, node: int) -> NodeReport:
        found = _read(self._node(node)) or {}
        lists = {name: tuple(found.pop(name, ())) for name in ("urls", "fresh")}
        return NodeReport(**lists, **found)

    def beat(self, number: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with replace_file(self.directory / "beat") as draft:
            draft.write_text(str(number))

    def last_beat(self) -> str:
        """Of the trainer; the same again says nothing, another one that it lives."""
        path = self.directory / "beat"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "end").touch()

    @property
    def is_over(self) -> bool:
        return (self.directory / "end").exists()

    def _node(self, node: int) -> Path:
        return self.directory / f"node_{node}.json"


def _read(path: Path) -> dict | None:
    """A file is replaced as a whole, so that what is there can be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
