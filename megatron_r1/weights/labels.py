"""What weights are called in the servers that hold them: which version, and whose."""

from __future__ import annotations


class ForeignWeightsError(Exception):
    """Weights that this run did not publish. Holds their name."""


def make_label(version: int, owner: str) -> str:
    """Name of the weights after `version` updates of one run's policy, such as ``40.9f2c51aa``."""
    return f"{version}.{owner}"


def version_of(label: str, owner: str) -> int:
    """The version in a label.

    Raises:
        ForeignWeightsError: it is not of this owner.
    """
    version, _, theirs = str(label).partition(".")
    if theirs != owner or not version.isdecimal():
        raise ForeignWeightsError(label)
    return int(version)
