"""Every form of a picture has the pixels of its control, or is refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.data.images import read_picture
from breakhis_pl.errors import DataError

HEIGHT, WIDTH = 20, 30
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = RGB[..., 0].copy()
GRAY[0, 0] = 255
PLANES = RGB.transpose(2, 0, 1)
OPAQUE = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)


def tiff(
    strips: list[np.ndarray] | np.ndarray, photometric: int, n_samples: int, bits: int, order: str = "<", **tags: Any
) -> bytes:
    """Write a TIFF 6.0 file: one strip, or one per plane; other tags as t<number>=<value or values>."""
    chunks = [np.ascontiguousarray(strip) for strip in (strips if isinstance(strips, list) else [strips])]
    data = [chunk.astype(chunk.dtype.newbyteorder(order)).tobytes() for chunk in chunks]
    data = [zlib.compress(each) for each in data] if tags.get("t259") == 8 else data
    entries: dict[int, Any] = {256: WIDTH, 257: HEIGHT, 258: [bits] * n_samples, 259: 1, 262: photometric}
    entries |= {277: n_samples, 278: HEIGHT, 279: [len(each) for each in data]}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries[273] = [8 + sum(map(len, data[:index])) for index in range(len(data))]
    body, more_at, more, table = b"".join(data), 8 + sum(map(len, data)) + 2 + 12 * len(entries) + 4, b"", b""
    for tag, value in sorted(entries.items()):
        if isinstance(value, bytes):
            kind, n, raw = 2, len(value), value
        else:
            values = value if isinstance(value, list) else [value]
            kind, n, raw = (4 if tag in (273, 279) else 3), len(values), b""
            raw = struct.pack(f"{order}{n}{'I' if kind == 4 else 'H'}", *values)
        if len(raw) > 4:
            raw, more = struct.pack(f"{order}I", more_at + len(more)), more + raw
        table += struct.pack(f"{order}HHI", tag, kind, n) + raw.ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + more


def png(samples: np.ndarray, color_type: int, **chunks: bytes) -> bytes:
    """Write a PNG file of 8 or 16 bits."""
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(HEIGHT, -1)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8 * samples.itemsize, color_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))}
    body = b""
    for name, content in {**parts, "IEND": b""}.items():
        checksum = zlib.crc32(name.encode() + content)
        body += struct.pack(">I", len(content)) + name.encode() + content + struct.pack(">I", checksum)
    return b"\x89PNG\r\n\x1a\n" + body


def sgi16(planes: np.ndarray) -> bytes:
    """Write an SGI file of 16 bits, whose rows go up."""
    head = struct.pack(">hBBHHHHll", 474, 0, 2, 3, WIDTH, HEIGHT, len(planes), 0, 65535).ljust(512, b"\0")
    return head + wide(planes[:, ::-1]).astype(">u2").tobytes()


def saved(array: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """Write a file with Pillow."""
    content = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(content, kind, **options)
    return content.getvalue()


def wide(array: np.ndarray) -> np.ndarray:
    """Scale 8 to 16 bits."""
    return array.astype(np.uint16) * 257


def frames(kind: str, **options: Any) -> bytes:
    return saved(RGB, kind, save_all=True, append_images=[Image.fromarray(RGB[::-1])], **options)


def four(last: int) -> np.ndarray:
    return np.dstack([RGB, np.full_like(OPAQUE, last)])


def jpeg2000_of_12_bits() -> bytes:
    """Raise the bit depth that a JPEG 2000 file of 8 bits names."""
    content = bytearray(saved(RGB, "JPEG2000", irreversible=False))
    start = content.index(b"\xff\x4f\xff\x51") + 42
    content[start : start + 9 : 3] = b"\x0b\x0b\x0b"
    return bytes(content)


PALETTE = [257 * value for channel in range(3) for value in ((np.arange(256) * (channel + 1)) % 256).tolist()]
COLORS = np.array(PALETTE).reshape(3, 256)[:, GRAY].transpose(1, 2, 0) // 257

EQUAL: dict[str, tuple[bytes, np.ndarray]] = {
    **{f"{kind} of RGB": (saved(RGB, kind), RGB) for kind in ("PNG", "TIFF", "BMP", "PPM", "PCX", "SGI", "QOI")},
    **{f"{kind} of gray": (saved(GRAY, kind), GRAY) for kind in ("PNG", "TIFF", "BMP", "PPM", "PCX", "SGI", "GIF")},
    "lossless WebP": (saved(RGB, "WEBP", lossless=True), RGB),
    "JPEG 2000": (saved(RGB, "JPEG2000", irreversible=False), RGB),
    "JPEG 2000 of 16-bit gray": (saved(wide(GRAY), "JPEG2000", irreversible=False), GRAY),
    "PNG of 16-bit RGB": (png(wide(RGB), 2), RGB),
    "PNG of 16-bit gray": (png(wide(GRAY), 0), GRAY),
    "PNG of 16-bit RGBA": (png(wide(four(255)), 6), RGB),
    "PNG of RGBA": (png(four(255), 6), RGB),
    "PNG half transparent": (png(four(51), 6), np.rint(255 - (255 - RGB.astype(float)) * 0.2)),
    "PNG of a palette": (saved(GRAY % 8, "PNG", "P"), GRAY % 8),
    "PPM of 16 bits": (b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + wide(RGB).astype(">u2").tobytes(), RGB),
    "SGI of 16 bits": (sgi16(PLANES), RGB),
    **{
        f"TIFF {name}, {order}, compression {compression}": (
            tiff(samples, photometric, n, bits, order, t259=compression, **tags),
            control,
        )
        for order in "<>"
        for compression in (1, 8)
        for name, samples, photometric, n, bits, tags, control in (
            ("RGB", RGB, 2, 3, 8, {}, RGB),
            ("16-bit RGB", wide(RGB), 2, 3, 16, {}, RGB),
            ("planes", list(PLANES), 2, 3, 8, {"t284": 2}, RGB),
            ("gray", GRAY, 1, 1, 8, {}, GRAY),
            ("16-bit gray", wide(GRAY), 1, 1, 16, {}, GRAY),
            ("white is zero", 255 - GRAY, 0, 1, 8, {}, GRAY),
            ("palette", GRAY, 3, 1, 8, {"t320": PALETTE}, COLORS),
            ("RGBA", four(255), 2, 4, 8, {"t338": [2]}, RGB),
            ("premultiplied", four(255), 2, 4, 8, {"t338": [1]}, RGB),
            ("unused sample", four(9), 2, 4, 8, {"t338": [0]}, RGB),
            ("16-bit RGBA", wide(four(255)), 2, 4, 16, {"t338": [2]}, RGB),
            ("turned", RGB, 2, 3, 8, {"t274": 6}, np.rot90(RGB, -1)),
            ("turned planes", list(PLANES), 2, 3, 8, {"t284": 2, "t274": 3}, RGB[::-1, ::-1]),
        )
    },
}

CLOSE: dict[str, bytes] = {
    "JPEG": saved(RGB, "JPEG", quality=100, subsampling=0),
    "progressive JPEG": saved(RGB, "JPEG", quality=100, subsampling=0, progressive=True),
    "TIFF with JPEG": saved(RGB, "TIFF", compression="jpeg", quality=100),
    "AVIF": saved(RGB, "AVIF", quality=100, subsampling="4:4:4"),
    "MPO": frames("MPO", quality=100, subsampling=0),
}

REFUSED: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a picture",
    "JPEG of CMYK": saved(RGB, "JPEG", "CMYK"),
    "JPEG 2000 of 12-bit RGB": jpeg2000_of_12_bits(),
    "PNG of 16 bits of which 12 are used": png(RGB.astype(np.uint16) * 16, 2),
    "PNG with a transparent color of 16 bits": png(wide(GRAY), 0, tRNS=b"\1\2"),
    "PNG with an unknown checksum": saved(RGB, "PNG")[:-20] + b"0000" + saved(RGB, "PNG")[-16:],
    "transparent PNG": png(four(0), 6),
    "PGM of 16 bits": b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + wide(GRAY).astype(">u2").tobytes(),
    "frames of PNG": frames("PNG"),
    "frames of GIF": frames("GIF"),
    "frames of WebP": frames("WEBP"),
    "frames of AVIF": frames("AVIF"),
    "pages of TIFF": frames("TIFF"),
    "TIFF planes of 16 bits": tiff(list(wide(PLANES)), 2, 3, 16, t284=2),
    "TIFF white is zero, 16 bits": tiff(65535 - wide(GRAY), 0, 1, 16),
    "TIFF of 32 bits": tiff(wide(GRAY).astype(np.uint32), 1, 1, 32),
    "TIFF of floats": tiff((GRAY / 255).astype(np.float32), 1, 1, 32, t339=3),
    "TIFF of signed values": tiff((GRAY.astype(int) - 128).astype(np.int8), 1, 1, 8, t339=2),
    "TIFF of 12 bits": tiff(GRAY, 1, 1, 12),
    "TIFF of 16 bits of which 12 are used": tiff(GRAY.astype(np.uint16) * 16, 1, 1, 16),
    "TIFF with bits in reverse order": tiff(GRAY, 1, 1, 8, t266=2),
    "TIFF of CMYK": tiff(four(0), 5, 4, 8),
    "TIFF of YCbCr without compression": tiff(RGB, 6, 3, 8),
    "TIFF of L*a*b*": tiff(RGB, 8, 3, 8),
    "TIFF that is transparent": tiff(four(0), 2, 4, 8, t338=[2]),
    "TIFF of four samples without a meaning": tiff(four(255), 2, 4, 8),
    "TIFF of five samples": tiff(np.dstack([four(255), OPAQUE]), 2, 5, 8, t338=[2, 0]),
    "TIFF of Aperio": tiff(RGB, 2, 3, 8, t270=b"Aperio Image Library v11.2.1|MPP = 0.4990\0"),
    "TIFF of Hamamatsu": tiff(RGB, 2, 3, 8, t65420=1),
    "TIFF of Leica": tiff(RGB, 2, 3, 8, t270=b'<?xml version="1.0"?><scn xmlns="http://www.leica">\0'),
    "TIFF of Ventana": tiff(RGB, 2, 3, 8, t270=b'<?xml version="1.0"?><iScan Magnification="20">\0'),
    "TIFF of Philips": tiff(RGB, 2, 3, 8, t305=b"Philips DP v1.0\0"),
    "stack of ImageJ": tiff(GRAY, 1, 1, 8, t270=b"ImageJ=1.53\nimages=3\nchannels=3\n\0"),
}


def read(folder: Path, content: bytes) -> np.ndarray:
    """Read a picture whose name says nothing."""
    (folder / "picture").write_bytes(content)
    return read_picture(folder / "picture")


@pytest.mark.parametrize("form", EQUAL)
def test_a_form_has_the_pixels_of_its_control(form: str, tmp_path: Path) -> None:
    content, control = EQUAL[form]
    expected = control if control.ndim == 3 else np.dstack([control] * 3)
    np.testing.assert_array_equal(read(tmp_path, content), expected)


@pytest.mark.parametrize("form", CLOSE)
def test_a_compressed_form_resembles_its_control(form: str, tmp_path: Path) -> None:
    assert np.abs(read(tmp_path, CLOSE[form]).astype(int) - RGB).mean() < 3


@pytest.mark.parametrize("form", REFUSED)
def test_a_form_that_may_be_decoded_wrongly_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(tmp_path, REFUSED[form])


@pytest.mark.parametrize("form", ["PNG of RGB", "TIFF of RGB", "BMP of RGB", "lossless WebP", "SGI of 16 bits"])
def test_a_file_that_is_cut_short_is_refused(form: str, tmp_path: Path) -> None:
    content = EQUAL[form][0]
    for n in (20, len(content) // 2, len(content) - 30):
        with pytest.raises(DataError):
            read(tmp_path, content[:n])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_orientation_of_the_camera_is_followed(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    Image.fromarray(np.rot90(RGB).copy()).save(tmp_path / "a.png", kind, exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png"), RGB)


def test_scanner_files_folders_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "slide.ndpi", "TIFF")
    for path in (tmp_path / "slide.ndpi", tmp_path, tmp_path / "nowhere.png"):
        with pytest.raises(DataError):
            read_picture(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr("breakhis_pl.data.images.MAX_PIXELS", RGB.size // 3 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(DataError, match="30x20"):
        read_picture(tmp_path / "a.png")
    monkeypatch.setattr("breakhis_pl.data.images.MAX_SIDE", 29)
    with pytest.raises(DataError, match="29 along a side"):
        read_picture(tmp_path / "a.png")
