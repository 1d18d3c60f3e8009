"""The command that repeats a run, from its run.json alone; without torch.

run.json holds the value of every key. What a run was composed of, options and overrides, is found again: the option of
each group that is most like it, and every value in which it still differs.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from breakhis_pl import composition
from breakhis_pl.errors import ConfigurationError, RunFolderError, listed
from breakhis_pl.run_json import RUN_JSON, read_run

_PLAIN = re.compile(r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z/][A-Za-z0-9_./-]*")
"""Texts that need no quotes in Hydra's grammar."""

_KINDS = (".source", "._target_", ".backbone")
"""Keys that tell what an option is, whatever else was changed."""


def with_repeated(given: Sequence[str]) -> list[str]:
    """A command's arguments with the overrides of a run in place of repeat=<run folder>; those given besides win.

    Args:
        given: With at least one repeat=<run folder>.

    Raises:
        RunFolderError: As `repeating_overrides`.
        ConfigurationError: If not one folder is named, or a value is not possible.
    """
    places = [place for place, argument in enumerate(given) if argument.startswith("repeat=")]
    folder = given[places[0]].removeprefix("repeat=").strip("'\"")
    if len(places) > 1 or not folder:
        raise ConfigurationError("repeat takes one run folder, as in repeat=outputs/<date>/<run>")
    composition.register()
    before, after = given[: places[0]], given[places[0] + 1 :]  # Hydra wants all overrides on one side of -m
    changed = {argument.partition("=")[0] for argument in (*before, *after)}
    repeated = [each for each in repeating_overrides(Path(folder)) if each.partition("=")[0] not in changed]
    return [*before, *repeated, *after]


def repeating_overrides(folder: Path) -> list[str]:
    """The overrides that compose the configuration of a run.

    Args:
        folder: The run folder.

    Returns:
        As on the command line of train.py, without quotes of a shell.

    Raises:
        RunFolderError: If the folder is none of a run, or its configuration cannot be composed today.
        ConfigurationError: If a value is not possible.
    """
    wanted = composition.plain(composition.restored("train", read_run(folder)["config"]))
    leaves = dict(_leaves(wanted))
    overrides: list[str] = []
    for group in sorted(path.name for path in composition.CONF_FOLDER.iterdir() if path.is_dir()):
        if group in wanted:
            options = sorted(path.stem for path in (composition.CONF_FOLDER / group).glob("*.yaml"))
            overrides.append(f"{group}={_most_like(group, options, leaves)}")
    composed = dict(_leaves(composition.plain(composition.compose_checked("train", overrides))))
    overrides += [f"{key}={_written(value)}" for key, value in leaves.items() if composed.get(key) != value]
    found = dict(_leaves(composition.plain(composition.compose_checked("train", overrides))))
    differing = [key for key in found.keys() | leaves.keys() if found.get(key) != leaves.get(key)]
    if differing:
        raise RunFolderError(
            f"the configuration in {folder / RUN_JSON} cannot be composed: {listed(sorted(differing))} would differ"
        )
    return overrides


def _most_like(group: str, options: list[str], leaves: Mapping[str, Any]) -> str:
    """The option of a group that shares most values with a configuration."""

    def n_equal(option: str) -> int:
        try:
            composed = _leaves_of(group, option)
        except ConfigurationError:  # an option of an extra that is not installed; the run was checked, and needs none
            return -1
        equal = [key for key in composed if key.startswith(f"{group}.") and leaves.get(key) == composed[key]]
        return len(equal) + sum(len(leaves) for key in equal if key.endswith(_KINDS))

    return max(options, key=n_equal)


@cache
def _leaves_of(group: str, option: str) -> Mapping[str, Any]:
    """Values of the defaults with one option."""
    return dict(_leaves(composition.plain(composition.compose_checked("train", [f"{group}={option}"]))))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _written(value: object) -> str:
    """A value as Hydra's grammar takes it."""
    if isinstance(value, list):
        return f"[{','.join(_written(part) for part in value)}]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else f"'{_escaped(value)}'"
    return json.dumps(value)


def _escaped(text: str) -> str:
    """A text between Hydra's single quotes: a quote needs a backslash, and backslashes before one are doubled."""
    parts = []
    n_backslashes = 0
    for character in text:
        if character == "'":
            parts.append("\\" * n_backslashes + "\\'")
        else:
            parts.append(character)
        n_backslashes = n_backslashes + 1 if character == "\\" else 0
    return "".join(parts) + "\\" * n_backslashes
