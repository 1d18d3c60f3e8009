"""Hydra's side of the configuration: schema, composition, and errors that name the valid keys.

Everything a user can get wrong in keys and values is found here, before torch is imported.
"""

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from breakhis_pl.config import PROGRAMS, VARIANTS, DataConfig, ProgramName, magnifications
from breakhis_pl.config_faults import faults
from breakhis_pl.errors import ConfigurationError, listed

CONF_FOLDER = Path(__file__).resolve().parent.parent / "conf"

_swept_keys: tuple[str, ...] = ()


def register(swept_keys: Sequence[str] = ()) -> None:
    """Makes schema and resolvers known to Hydra; may be called again.

    Args:
        swept_keys: Keys that the command line gives several values, for the names of a sweep's folders.
    """
    global _swept_keys  # noqa: PLW0603 - Hydra calls resolvers without context
    _swept_keys = tuple(swept_keys)
    store = ConfigStore.instance()
    for program, node in PROGRAMS.items():
        store.store(group="schema", name=program, node=node)
    for group, (_, variants) in VARIANTS.items():
        for variant in variants.values():
            option = variant.__name__.removesuffix(_suffix(group)).lower()
            store.store(group=f"schema/{group}", name=option, node=variant)
    OmegaConf.register_new_resolver("sweep_choice", sweep_choice, replace=True)


def swept_by_command() -> tuple[str, ...]:
    """The keys that `register` was told of."""
    return _swept_keys


def _suffix(group: str) -> str:
    return {"data": "DataConfig", "logger": "LoggerConfig"}.get(group, "Config")


def sweep_choice(overrides: Sequence[str]) -> str:
    """Folder name of one run of a sweep: its swept values, joined by "_".

    A value is kept as it is where it is a plain word or number; otherwise what does not fit into a folder name is
    replaced, and a short checksum keeps different values apart.

    Args:
        overrides: All overrides of the run, as in "model=resnet18".
    """
    parts = []
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        if name not in _swept_keys:
            continue
        word = re.sub(r"[^A-Za-z0-9_.+-]+", "-", value).strip("-.")
        parts.append(word if word == value else f"{word}-{hashlib.sha256(value.encode()).hexdigest()[:6]}")
    return "_".join(parts) or "run"


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """The command line's overrides.

    Raises:
        ConfigurationError: If one of them is none.
    """
    try:
        return list(OverridesParser.create().parse_overrides(list(arguments)))
    except HydraException as error:
        raise ConfigurationError(
            f"{error}\nan override is key=value, as in model=resnet18; a value with spaces, commas, = or other special "
            "characters needs quotes inside quotes: \"data.root='/my data/x=1'\""
        ) from error


def swept_keys(overrides: Sequence[Override]) -> tuple[str, ...]:
    """Keys that have several values, in the order of the command line."""
    return tuple(override.get_key_element().lstrip("+~") for override in overrides if override.is_sweep_override())


def expand_sweep(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every run of a sweep.

    Raises:
        ConfigurationError: If a sweep is of a kind whose values are not known beforehand, such as glob or interval.
    """
    choices = []
    for override in overrides:
        if not override.is_sweep_override():
            choices.append([override.input_line or ""])
            continue
        try:
            values = list(override.sweep_string_iterator())
        except HydraException as error:
            raise ConfigurationError(
                f"{override.input_line}: give the values one by one, as in a=1,2 ({error})"
            ) from error
        choices.append([f"{override.get_key_element()}={value}" for value in values])
    return [list(combination) for combination in itertools.product(*choices)]


def compose_checked(program: ProgramName, overrides: Sequence[str]) -> Any:
    """The typed configuration that the overrides give.

    Args:
        program: Name of the primary configuration.
        overrides: As on the command line, without sweeps.

    Returns:
        The program's dataclass of `config.PROGRAMS`.

    Raises:
        ConfigurationError: With all faults in one message.
    """
    return typed(program, _composed(program, overrides))


def output_folder(program: ProgramName, overrides: Sequence[str], *, multirun: bool) -> Path:
    """Folder that Hydra will write a run, or a whole sweep, into.

    Args:
        program: Name of the primary configuration.
        overrides: Of one run.
        multirun: Whether the command is a sweep.

    Raises:
        ConfigurationError: If the overrides do not compose.
    """
    composed = _composed(program, overrides, with_hydra=True)
    try:
        return Path(str(OmegaConf.select(composed, f"hydra.{'sweep' if multirun else 'run'}.dir")))
    except OmegaConfBaseException as error:
        raise ConfigurationError(_explain_value(error)) from error


def chosen_options(overrides: Sequence[str]) -> dict[str, str]:
    """Option by group that a run of train.py is composed of, without the experiment.

    Args:
        overrides: Of one run.

    Raises:
        ConfigurationError: If the overrides do not compose.
    """
    chosen = OmegaConf.select(_composed("train", overrides, with_hydra=True), "hydra.runtime.choices")
    return {
        str(group): str(option)
        for group, option in chosen.items()
        if (CONF_FOLDER / str(group)).is_dir() and group != "experiment"
    }


def _composed(program: ProgramName, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """What Hydra composes.

    Raises:
        ConfigurationError: With the valid keys or options, if it cannot.
    """
    try:
        is_in_job = GlobalHydra.instance().is_initialized()  # of tune.py, which composes its trials
        with nullcontext() if is_in_job else initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            return compose(program, overrides=list(overrides), return_hydra_config=with_hydra)
    except HydraException as error:
        raise ConfigurationError(_no_choice(error, program) or _explain(error)) from error
    except (ValueError, YAMLError) as error:  # a group set to null; a file that is no YAML
        raise ConfigurationError(str(error)) from error


def typed(program: ProgramName, composed: DictConfig) -> Any:
    """The composed configuration as the program's dataclass, every value checked.

    Raises:
        ConfigurationError: With all faults in one message.
    """
    schema = PROGRAMS[program]
    strange = list(_unknown_keys(composed, schema))
    if strange:
        raise ConfigurationError("\n".join(strange))
    config = _instance(schema, composed)
    found = list(faults(config))
    if found:
        raise ConfigurationError("\n".join(found))
    return config


def restored(program: ProgramName, values: Mapping[str, Any]) -> Any:
    """The typed configuration from plain values, such as run.json holds.

    Raises:
        ConfigurationError: With all faults in one message.
    """
    register(_swept_keys)
    references = list(_references(values))
    if references:
        raise ConfigurationError(f"{listed(references)} refers to something else; expected plain values")
    of_before = {"logger": {"kind": "tensorboard"}} if program == "train" else {}  # there was no choice
    return typed(program, OmegaConf.create(of_before | dict(values)))


def _references(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys whose value OmegaConf would look up, in the environment for example."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _references(value, f"{prefix}{name}.")
        elif "${" in str(value):
            yield f"{prefix}{name}={value}"


def plain(config: object) -> dict[str, Any]:
    """A typed configuration as plain values, for run.json."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    if not isinstance(container, dict):  # pragma: no cover - a dataclass always gives a dict
        raise ConfigurationError(f"{config!r} is no configuration")
    return {str(name): value for name, value in container.items()}


def _variant(name: str, node: Any) -> type | None:
    """The dataclass of a group whose options have keys of their own; None if `name` is no such group."""
    if name not in VARIANTS:
        return None
    tell_apart, variants = VARIANTS[name]
    value = str(node.get(tell_apart)) if isinstance(node, DictConfig) else "null"
    if value not in variants:
        raise ConfigurationError(f"{name}.{tell_apart}={value} is not possible; expected one of {listed(variants)}")
    return variants[value]


def _unknown_keys(node: DictConfig, schema: type, prefix: str = "") -> Iterator[str]:
    """A sentence for each key that the schema does not have."""
    known = {entry.name: entry for entry in fields(schema)}
    for name in map(str, node):
        if name not in known:
            yield unknown_key(f"{prefix}{name}", list(known))
            continue
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            variant = known[name].type if known[name].type is not Any else _variant(name, child)
            if isinstance(variant, type):
                yield from _unknown_keys(child, variant, f"{prefix}{name}.")


def unknown_key(name: str, valid: Sequence[str]) -> str:
    """The sentence about a key that does not exist: the nearest one, and all there are."""
    group, _, last = name.rpartition(".")
    near = difflib.get_close_matches(last, valid, n=1)
    hint = f" (did you mean {group + '.' if group else ''}{near[0]}?)" if near else ""
    return f"unknown key {name}{hint}; {group or 'the configuration'} has: {', '.join(sorted(valid))}"


def _instance(schema: type, node: DictConfig) -> Any:
    """The dataclass with the node's values, types converted as OmegaConf does."""
    try:
        values: dict[str, Any] = {}
        groups = {}
        for entry in fields(schema):
            variant = _variant(entry.name, node.get(entry.name)) if entry.type is Any else None
            if variant is not None:
                groups[entry.name] = OmegaConf.merge(OmegaConf.structured(variant), node[entry.name])
        whole = OmegaConf.merge(OmegaConf.structured(schema), node, groups)
        for entry in fields(schema):
            values[entry.name] = _plain_value(whole, entry.name)
    except OmegaConfBaseException as error:
        raise ConfigurationError(_explain_value(error)) from error
    config = schema(**values)
    data = getattr(config, "data", None)
    if isinstance(data, DataConfig):
        data.magnification = magnifications(data.magnification)
        if data.test_magnification is not None:
            data.test_magnification = magnifications(data.test_magnification)
    return config


def _plain_value(whole: Any, name: str) -> Any:
    """A value, or a group as its dataclass, with interpolations resolved and nothing missing."""
    value = whole[name]
    if not OmegaConf.is_config(value):
        return value
    missing = OmegaConf.missing_keys(value)
    if missing:
        raise ConfigurationError(f"{listed(sorted(f'{name}.{key}' for key in missing))} has no value; set it")
    OmegaConf.resolve(value)
    return OmegaConf.to_object(value)


def _explain_value(error: OmegaConfBaseException) -> str:
    """A value of the wrong type, a missing one or an interpolation that leads nowhere, in one line."""
    text = str(error.msg or error).splitlines()[0]
    name = error.full_key or ""
    if "Missing mandatory value" in text:
        return f"{name} has no value; set it, as in {name}=…"
    return f"{name}={error.value!r} is not possible: {text}" if error.value is not None else f"{name}: {text}"


def _no_choice(error: HydraException, program: ProgramName) -> str | None:
    """What to do instead of choosing an option where there is none to choose; None for another error."""
    found = re.match(r"Could not override '([^'@]+)'\. No match", str(error))
    if found is None:
        return None
    name = found[1]
    kinds = {entry.name: entry.type for entry in fields(PROGRAMS[program])}
    kind = kinds.get(name)
    if not isinstance(kind, type) or not is_dataclass(kind):
        return unknown_key(name, list(kinds))
    keys = sorted(entry.name for entry in fields(kind))
    return (
        f"{name} has no options in {program}.py; set its keys, as in {name}.{keys[0]}=…; {name} has: {', '.join(keys)}"
    )


def _explain(error: HydraException) -> str:
    """Hydra's error with the valid options or keys instead of its advice to add the key."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        hint = f" (did you mean {group}={near[0]}?)" if near else ""
        return f"{group}={choice} does not exist{hint}; options of {group}: {', '.join(error.options)}"
    cause = error.__cause__ or error.__context__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        where = re.match(r"In '([^']+)'", str(error))
        place = f"conf/{where[1]}.yaml: " if where else ""
        schema = cause.object_type
        if cause.full_key and isinstance(schema, type) and hasattr(schema, "__dataclass_fields__"):
            names = [entry.name for entry in fields(schema)]
            if cause.full_key.rpartition(".")[2] not in names:
                return place + unknown_key(cause.full_key, names)
        return place + _explain_value(cause)
    return str(error)
