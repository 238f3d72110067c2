"""Files that somebody made to do harm: one sentence, and soon."""

import io
import tarfile
from pathlib import Path

import pytest

from fastload.errors import SourceError
from fastload.sources import detect
from tests.sources_help import add


def pax(size: int) -> bytes:
    """A header of more headers, whose own size is `size`."""
    member = tarfile.TarInfo("./PaxHeaders/x")
    member.type, member.size = tarfile.XHDTYPE, size
    return member.tobuf(tarfile.GNU_FORMAT)


def with_size(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "data",
    [with_size("a.jpg", -512), with_size("a.cls", -512), with_size("a.txt", -1024), with_size("a.jpg", 2**62),
     pax(2**62), pax(-512), pax(2**86)],
)  # fmt: skip
def test_a_tar_of_made_up_sizes(tmp_path: Path, data: bytes) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        add(tar, "0.jpg", b"one")
    (tmp_path / "x.tar").write_bytes(whole.getvalue()[:1024] + data + bytes(1024))
    with pytest.raises(SourceError, match="no whole, uncompressed tar"):
        detect(tmp_path / "x.tar")
