"""Optional libraries: imported at first use, and one sentence where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from fastload.errors import ConfigError


def need(module: str, extra: str, what: str) -> Any:
    """Import and return `module`, which the extra `extra` brings.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.partition(".")[0]
        raise ConfigError(f'{what} needs {package}, which is not installed: pip install "fastload[{extra}]"') from e
