"""Where a report goes besides the terminal: JSON, a page, a picture. Needs no torch before it writes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fastload.errors import ConfigError, printable
from fastload.files import write_text, writing

if TYPE_CHECKING:
    from fastload.profiling.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that were asked for; None where one was not."""

    json: Path | None = None
    html: Path | None = None
    png: Path | None = None

    def check(self) -> None:
        """Find what would stop the writing, before minutes are spent on measuring.

        Raises:
            ConfigError: a folder where a file should be, or no matplotlib.
        """
        for file in filter(None, (self.json, self.html, self.png)):
            if file.is_dir():
                raise ConfigError(f"{printable(file)} is a folder; give the name of a file.")
        if self.png is not None and find_spec("matplotlib") is None:
            from fastload.profiling.plots import need_matplotlib

            need_matplotlib()

    def write(self, report: dict[str, Any], console: Console, comparison: Comparison | None = None) -> None:
        """Write the files, and say so once they are all there.

        Raises:
            ConfigError: one cannot be written.
            OSError: nobody reads the console; the files are written.
        """
        from fastload.profiling.page import page
        from fastload.profiling.plots import write_png
        from fastload.profiling.report import shortened, write_json

        report, written = shortened(report), []
        try:
            for file in filter(None, (self.json, self.html, self.png)):
                with writing(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if file is self.json:
                        write_json(file, report)
                    elif file is self.html:
                        write_text(file, page(report, comparison))
                    else:
                        write_png(report, file)
                written.append(file)
        finally:
            for file in written:
                say_written(file, console)


def say_written(file: Path, console: Console) -> None:
    """Say that a file was written."""
    console.print(f"wrote {printable(file)}", markup=False, highlight=False, soft_wrap=True)
