"""The tree of exceptions, and the one way strings from data reach a terminal.

FastloadError
 ├── ConfigError        an option or argument that cannot be right (size 0, an unknown schedule)
 ├── SourceError        a source without images, or in no known layout
 │    └── DecodeError   one file of it that cannot become an image; carries the path
 ├── DatasetError       a dataset that is missing, damaged, of another version, or in the way
 ├── PlacementError     the asked-for memory does not hold the dataset
 ├── TransformError     a transform we do not know, or that does not fit the images
 ├── CheckpointError    a checkpoint that is missing, damaged or of another model
 └── TrainError         training that cannot go on (the loss is not a number)

Users catch FastloadError. Every message says what was wrong, what was found and the next step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class FastloadError(Exception):
    """The root: everything fastload raises on purpose."""


class ConfigError(FastloadError):
    """An option or argument cannot be right."""


class SourceError(FastloadError):
    """A source has no images, or none of the known layouts."""


class DecodeError(SourceError):
    """A file cannot become an image.

    Attributes:
        path: the file, relative to its source.
        reason: what the decoder said.
        of_file: whether the file is at fault; else the machine is, or what decodes it, and no file is skipped for it.
    """

    def __init__(self, path: str, reason: str, of_file: bool = True) -> None:
        super().__init__(f"{printable(path)}: {reason}.")
        self.path = path
        self.reason = reason
        self.of_file = of_file

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str, bool]]:
        return type(self), (self.path, self.reason, self.of_file)


class DatasetError(FastloadError):
    """A dataset is missing, damaged, of another version, or in the way of a new one."""


class PlacementError(FastloadError):
    """The asked-for memory does not hold the dataset."""


class TransformError(FastloadError):
    """A transform is not known, or does not fit the images."""


class CheckpointError(FastloadError):
    """A checkpoint is missing, damaged or belongs to another model."""


class TrainError(FastloadError):
    """Training cannot go on."""


def printable(text: object) -> str:
    """Return `text` with every character that could steer a terminal written as an escape.

    File and class names come from data nobody has checked: a name may hold newlines, escape
    sequences or bytes that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def several(names: Sequence[str]) -> str:
    """Return the first twelve names in one line, and whether there are more."""
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def exit_with(program: Callable[[], object]) -> None:
    """Call `program`, turning a FastloadError into one sentence on standard error and exit code 2."""
    try:
        program()
    except FastloadError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        sys.last_value = e  # as the interpreter does with what it prints: at exit it is known that this process failed
        sys.exit(2)
