"""Display names: what people should read for each class, from `cat_to_name.json` or a file they name."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

from fastload.errors import ConfigError, SourceError, printable
from fastload.places import Place
from fastload.records import Source
from fastload.sources.labels import is_whole

NAMES_FILE = "cat_to_name.json"


def with_names_beside(source: Source) -> Source:
    """Give `source` the names of the `cat_to_name.json` in its root or in the folder above, where there is one.

    A class that it does not name keeps its own. A file that names none of them belongs to something else.

    Raises:
        SourceError: the file is no JSON object.
    """
    for folder in (source.root, source.root.absolute().parent):
        file = folder / NAMES_FILE
        if file.is_file():
            try:
                names = json.loads(_text_of(file))
                if not isinstance(names, dict):
                    raise ValueError("no JSON object")
            except (OSError, ValueError) as e:
                raise SourceError(
                    f"{printable(file)} cannot be read ({printable(e)}); mend it, or move it away."
                ) from e
            if not names.keys().isdisjoint(source.classes):
                found = tuple(str(names.get(name, name)) for name in source.classes)
                return dataclasses.replace(source, display_names=found)
    return source


def with_names_from(source: Source, file: Place) -> Source:
    """Give `source` the names in `file`: a JSON object of class -> name, or one name per line (or a JSON list).

    Lines go by the order of the classes. Where there are more lines than classes and the classes are whole
    numbers, class 3 has the fourth line.

    Raises:
        ConfigError: the file cannot be read, or has no name for a class.
    """
    try:
        text = _text_of(file)
        content: Any = json.loads(text) if text.lstrip()[:1] in ("{", "[") else text.split("\n")
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"--class-names {printable(file)} cannot be read ({printable(e)}); "
            "pass a JSON object, or one name per line."
        ) from e
    classes = source.classes
    if isinstance(content, dict):
        names = {str(key): str(name) for key, name in content.items()}
        missing = [name for name in classes if name not in names]
        if missing:
            raise ConfigError(
                f"--class-names {printable(file)} names {len(classes) - len(missing)} of {len(classes)} classes "
                f"(first without a name: {printable(missing[0])}); add the rest."
            )
        return dataclasses.replace(source, display_names=tuple(names[name] for name in classes))
    lines = [str(line).strip() for line in content]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) == len(classes):
        return dataclasses.replace(source, display_names=tuple(lines))
    if all(is_whole(name) and 0 <= int(name) < len(lines) for name in classes):
        return dataclasses.replace(source, display_names=tuple(lines[int(name)] for name in classes))
    raise ConfigError(
        f"--class-names {printable(file)} has {len(lines)} names, and there are {len(classes)} classes; "
        "write one name per class, in their order."
    )


def _text_of(file: Place) -> str:
    return io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="utf-8-sig").read()
