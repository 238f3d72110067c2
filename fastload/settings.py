"""Settings of a recipe: every field of a dataclass is a flag with its help, or a line of a YAML file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from fastload.config import TrainConfig
from fastload.errors import ConfigError, exit_with, printable
from fastload.files import write_text, writing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def run(main: Callable[[Settings], object], settings: type[Settings]) -> None:
    """Call `main` with settings made from the command line; a FastloadError is one sentence and exit code 2.

    Args:
        main: what to do; its docstring stands in `--help`.
        settings: a frozen dataclass; every field is a flag, and its docstring the help. `--config FILE.yaml`
            gives values that flags overrule.
    """
    exit_with(lambda: main(parse(settings, sys.argv[1:], about=main.__doc__ or "")))


def parse(settings: type[Settings], words: Sequence[str], *, about: str = "") -> Settings:
    """Return settings from the words of a command line.

    Raises:
        ConfigError: a value cannot be right, or `--config` names a file that is none.
        SystemExit: --help, or words that are no flags (exit code 2), said on the terminal.
    """
    words, file = _take_config(words)
    given = {} if file is None else load(settings, file)
    # Fields without a default that the file leaves open must still be given as flags.
    required = {f.name: tyro.MISSING for f in fields(settings) if f.default is f.default_factory is MISSING}
    about = f"{about.strip()}\n\n--config FILE.yaml: take values from there by name; flags overrule it."
    default = settings(**{**required, **given})
    return tyro.cli(settings, args=words, default=default, description=about.strip())


def load(settings: type[DataclassInstance], file: str | Path) -> dict[str, Any]:
    """Return the values that a YAML file gives for fields of `settings`, each of its field's type.

    Raises:
        ConfigError: no such file, no YAML, a name that is no field, or a value of another type.
    """
    where = printable(file)
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is no text"
        raise ConfigError(f"--config {where} cannot be read ({reason}); check the path.") from e
    except yaml.YAMLError as e:
        raise ConfigError(f"--config {where} is no YAML ({printable(e)}); write a line `name: value` each.") from e
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {where} holds no names; write a line `name: value` each.")
    hints = get_type_hints(settings)
    known = [f.name for f in fields(settings)]
    found = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help for all names."
            raise ConfigError(f"--config {where}: {printable(key)} is no setting; {hint}")
        try:
            found[name] = _typed(value, hints[name])
        except (TypeError, ValueError):
            raise ConfigError(
                f"--config {where}: {name} is {printable(repr(value))}, and {_described(hints[name])} is needed."
            ) from None
    return found


def plain(settings: TrainConfig) -> dict[str, Any]:
    """Return settings as YAML and JSON take them: paths and the like as text, tuples as lists."""

    def simple(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [simple(v) for v in value]
        return value if isinstance(value, bool | int | float | str | NoneType) else str(value)

    return {name: simple(value) for name, value in asdict(settings).items()}


def save(settings: TrainConfig, file: Path) -> None:
    """Write settings as a YAML file that `--config` takes.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    with writing(file):
        write_text(file, yaml.safe_dump(plain(settings), sort_keys=False, allow_unicode=True))


def _take_config(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the words without `--config FILE`, and FILE."""
    rest, file, coming = [], None, iter(words)
    for word in coming:
        if word == "--config" or word.startswith("--config="):
            file = word.partition("=")[2] or next(coming, None)
            if not file:
                raise ConfigError("--config needs a YAML file; write --config FILE.yaml.")
        else:
            rest.append(word)
    return rest, file


def _typed(value: Any, hint: Any) -> Any:
    """Return a value of a YAML file as one of type `hint`.

    Raises:
        TypeError, ValueError: it is none.
    """
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for option in options:
            with suppress(TypeError, ValueError):
                return _typed(value, option)
    elif origin is Literal:
        # YAML reads a bare `no` as False.
        value = {False: "no", True: "yes"}.get(value, value) if isinstance(value, bool) else value
        if value in options:
            return value
    elif origin in (tuple, list) and isinstance(value, list):
        kinds = [options[0]] * len(value) if origin is list or options[1:] == (...,) else options
        return origin(_typed(v, kind) for v, kind in zip(value, kinds, strict=True))
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)  # of a text, too: YAML 1.1 reads 1e-3 as one
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint in (bool, int, str, NoneType) and type(value) is hint:
        return value
    raise TypeError


def _described(hint: Any) -> str:
    """Return what kind of value a field takes, in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return f"a list of {_described(get_args(hint)[0])}"
    named = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
    return "null" if hint is NoneType else named.get(hint, str(hint))
