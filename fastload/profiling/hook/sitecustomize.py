"""Started by Python in every process of a watched command: waits for the modules that load batches to be imported.

Imports nothing that Python has not imported already, hands on to the sitecustomize that it hides, and takes its own
folder off sys.path, so that the script finds the modules it would find without it.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing's own would cost every process ten milliseconds
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

FOLDER_VARIABLE = "FASTLOAD_WATCH_FOLDER"
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would have to be imported
WATCHED = {"torch.utils.data.dataloader": "watch_dataloader", "fastload.loader": "watch_fastload"}


class Finder:
    """Comes first among Python's finders, and finds nothing: lets the others find, and adds what comes after."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec that the other finders have for a watched module; None for all others."""
        if name not in WATCHED:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is cls else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, target)
            if spec is not None:
                _call_after(spec, WATCHED[name])
                return spec
        return None


def _call_after(spec: ModuleSpec, function: str) -> None:
    """Make the module's own loader call a function of watcher.py once it has run the module."""
    loader = spec.loader
    execute = getattr(loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module: ModuleType) -> None:
        execute(module)
        try:
            del loader.exec_module  # type: ignore[union-attr]
            getattr(_watcher(), function)(module)
        except Exception as e:
            _tell(e)  # the script goes on unwatched

    try:
        loader.exec_module = exec_module  # type: ignore[union-attr,method-assign]
    except AttributeError as e:
        _tell(e)


def _watcher() -> ModuleType:
    """Return watcher.py: this folder as a package, under a name that no script uses."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    name = "_fastload_hook"
    if name not in sys.modules:
        init = os.path.join(HERE, "__init__.py")  # noqa: PTH118
        spec = spec_from_file_location(name, init, submodule_search_locations=[HERE])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return import_module(f"{name}.watcher")


def _tell(error: Exception) -> None:
    """Leave what went wrong for `bench`; never on the script's own output."""
    try:
        name = os.path.join(os.environ[FOLDER_VARIABLE], f"failed-{os.getpid()}")  # noqa: PTH118
        with open(name, "w") as file:  # noqa: PTH123
            file.write(f"{type(error).__name__}: {error}")
    except OSError:
        pass  # the folder is gone: nobody is there to read it


def _start() -> None:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    try:
        # That Python came by here tells a script without a DataLoader from one that could not be watched.
        os.close(os.open(os.path.join(folder, f"started-{os.getpid()}"), os.O_WRONLY | os.O_CREAT, 0o600))  # noqa: PTH118
    except OSError:
        return
    sys.meta_path.insert(0, Finder)


def _hand_on() -> None:
    """Run the sitecustomize that this one hides, as Python would have; its mistakes are its own."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != HERE]  # noqa: PTH100
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    _start()
    _hand_on()
