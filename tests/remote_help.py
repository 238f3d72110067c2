"""What the tests of URLs share: trees copied to fsspec filesystems, one of which runs in an event loop as s3fs does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


def to_memory(root: Path, name: str) -> str:
    """Copy a tree to memory, empty folders too; return its URL."""
    filesystem = fsspec.filesystem("memory")
    filesystem.makedirs(f"/{name}", exist_ok=True)
    for file in sorted(root.rglob("*")):
        where = f"/{name}/{file.relative_to(root)}"
        if file.is_dir():
            filesystem.makedirs(where, exist_ok=True)
        else:
            filesystem.pipe_file(where, file.read_bytes())
    return f"memory://{name}"


def forget() -> None:
    """Empty the memory that all of fsspec's memory filesystems share."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


class Elsewhere(AsyncFileSystem):  # type: ignore[misc]
    """`elsewhere://`: the same memory, reached as a store in the cloud is: one event loop per process, listings kept.

    Like s3fs it refuses to be used in a process that was forked after it was made.
    """

    protocol = "elsewhere"
    requests: ClassVar[Counter[str]] = Counter()
    failure: BaseException | None = None
    failing: Collection[str] = ("ls", "info", "cat", "open")
    listing: list[dict[str, Any]] | None = None  # instead of what is there

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("elsewhere://").strip("/")

    @property
    def _memory(self) -> MemoryFileSystem:
        return fsspec.filesystem("memory")

    def _count(self, kind: str) -> None:
        self.requests[kind] += 1
        if self.failure is not None and kind in self.failing:
            raise self.failure

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        if self.listing is not None:
            return self.listing
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self._count("ls")
            found = self._memory.ls(f"/{path}", detail=True)
            marker = {"name": path, "size": 0, "type": "directory"}  # some stores list it, too
            self.dircache[path] = [marker, *({**about, "name": about["name"].strip("/")} for about in found)]
        return list(self.dircache[path]) if detail else [about["name"] for about in self.dircache[path]]

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._count("info")
        return dict(self._memory.info(f"/{self._strip_protocol(path)}"))

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._count("cat")
        if start is not None and start == end:
            raise ValueError("InvalidRange")  # as stores say
        return bytes(self._memory.cat_file(f"/{self._strip_protocol(path)}", start=start, end=end))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> MemoryFile:
        assert self.loop is not None  # what says that it was forked
        self._count("open")
        return self._memory.open(f"/{self._strip_protocol(path)}", mode)


fsspec.register_implementation("elsewhere", Elsewhere, clobber=True)
