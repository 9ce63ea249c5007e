"""What a user types on the command line, looked at before Hydra composes it: names, not values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import Container, DictConfig

from megatron_r1.errors import ConfigError


def check_names(overrides: Sequence[str], conf_dir: Path) -> None:
    """Refuse choices without a file and settings that do not exist; Hydra is initialised.

    Raises:
        ConfigError: with the names that are there and alike.
    """
    groups = choices(conf_dir)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = [override for override in parsed if override.key_or_group in groups]
    for override in chosen:
        _check_choice(override, groups[override.key_or_group])
    settings = [override for override in parsed if override not in chosen]
    if not settings:
        return
    composed = _settings_of(conf_dir, tuple(override.input_line for override in chosen))
    for override in settings:
        _check_setting(override, composed, groups)


@cache
def _settings_of(conf_dir: Path, chosen: tuple[str, ...]) -> DictConfig:
    """The configuration with these choices, before single settings. `conf_dir` does not change
    while a process runs."""
    return compose(config_name="config", overrides=list(chosen))


def choices(conf_dir: Path) -> dict[str, list[str]]:
    """Group -> its choices: the files of its folder in `conf/`."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(conf_dir.iterdir())
        if folder.is_dir()
    }


def usage(conf_dir: Path) -> str:
    """What `--help` prints."""
    groups = choices(conf_dir).items()
    rows = "\n".join(f"  {group:12}{', '.join(names)}" for group, names in groups)
    return f"""\
python -m megatron_r1.train [group=choice ...] [group.key=value ...]

  python -m megatron_r1.train experiment=quickstart run.name=mine stage.zero.num_steps=200
  torchrun --nproc-per-node 2 -m megatron_r1.train experiment=quickstart parallel.expert=2

Groups and their choices, files in {conf_dir}/:
{rows}

Settings of a group are fields of its schema in megatron_r1/config/; a run prints them all when it
starts and saves them as config.yaml in its directory, <run.root>/<run.name>/. Starting a run
again resumes it; run.overwrite=true starts it over. Exit codes: 0 done, 2 a mistake in settings or
data, 75 stopped early with a checkpoint."""


def _check_choice(override: Override, names: Sequence[str]) -> None:
    group, choice = override.key_or_group, override.value()
    if choice not in names:
        raise ConfigError(
            f"{override.input_line}: conf/{group}/ has no {choice}.yaml."
            f"{_did_you_mean(str(choice), names)} It has {', '.join(names)}"
        )


def _check_setting(override: Override, composed: DictConfig, groups: dict[str, list[str]]) -> None:
    key = override.key_or_group
    node: object = composed
    for depth, part in enumerate(parts := key.split(".")):
        if not isinstance(node, DictConfig):
            owner = ".".join(parts[:depth])
            raise ConfigError(f"{override.input_line}: {owner} is a value and has no settings")
        is_mapping = node._metadata.object_type in (dict, None)
        if part in set(node):  # also one that has no value yet
            node = node._get_node(part)
        elif is_mapping and override.is_add():
            return
        elif is_mapping:
            raise ConfigError(
                f"{override.input_line}: {'.'.join(parts[:depth])} has no entry {part!r}. A new "
                f"one takes a plus: +{override.input_line.lstrip('+')}"
            )
        else:
            known = [*_settings("", composed), *groups]
            raise ConfigError(
                f"{override.input_line}: there is no setting {key}.{_alike(key, known)} All "
                "settings are in megatron_r1/config/, the choices of each group in conf/"
            )


def _settings(prefix: str, node: Container) -> Iterator[str]:
    """Dotted names of all settings."""
    for key in node:
        child = node._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _settings(f"{prefix}{key}.", child)


def _alike(key: str, known: Sequence[str]) -> str:
    """Settings spelt nearly so, or of the same name elsewhere."""
    last = key.rpartition(".")[2]
    namesakes = [name for name in known if name.rpartition(".")[2] == last]
    return _did_you_mean(key, known, namesakes)


def _did_you_mean(name: str, known: Sequence[str], others: Sequence[str] = ()) -> str:
    near = get_close_matches(name, known, n=2, cutoff=0.75)
    near = list(dict.fromkeys([*near, *others]))[:2]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def quoted(value: str) -> str:
    """A text as Hydra takes it, whatever is in it."""
    inner = value.replace("\\", "\\\\") if value.endswith("\\") else value
    return "'" + inner.replace("'", "\\'") + "'"
