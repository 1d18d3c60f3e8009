"""Small tar.gz files for tests: with true BreakHis names, or with anything that must not be unpacked."""

import gzip
import io
import tarfile
from pathlib import Path

from breakhis_pl.data.breakhis import MAGNIFICATIONS, archive_folder, official_patients, parse_file_name

TINY_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c4944415408d763f8ffff3f0005fe02fea735810000000049454e44ae426082"
)

SMALL_TREE = {
    f"{archive_folder(parse_file_name(name))}/{name}": TINY_PNG
    for name in (
        "SOB_B_TA-14-3411F-40-001.png",
        "SOB_M_DC-14-2523-200-007.png",
        "SOB_B_A-14-22549AB-400-012.png",
    )
}


def published_tree() -> dict[str, bytes]:
    """Paths in the archive of as many images as were published, each one pixel."""
    names = (
        f"{patient}-{magnification}-{number:03d}.png"
        for patient, official in official_patients().items()
        for magnification in MAGNIFICATIONS
        for number in range(1, official.n_images[magnification] + 1)
    )
    return {f"{archive_folder(parse_file_name(name))}/{name}": TINY_PNG for name in names}


def file_member(name: str, content: bytes = TINY_PNG) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def special_member(name: str, kind: bytes, linkname: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = linkname
    return member, b""


def tar_gz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def tree_archive(tree: dict[str, bytes]) -> bytes:
    return tar_gz([file_member(name, content) for name, content in tree.items()])


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
