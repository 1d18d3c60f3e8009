import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.data import png as png_module
from breakhis_pl.data.png import read_png
from breakhis_pl.errors import ImageError
from tests.data.png_files import (
    PALETTE,
    SIGNATURE,
    chunk,
    compressed_zeros,
    exif,
    header,
    interlaced,
    noise,
    of_kind,
    png,
    rows,
    with_pixel_data,
)

TEXT = chunk(b"tEXt", b"Comment\0" + b"x" * 5_000_000)
PROFILE = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))


def saved(mode: str, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(noise()).convert(mode).save(content, format=form, **options)
    return content.getvalue()


READ_RIGHT = {
    "plain": png(),
    "pixels in many parts": png(n_parts=50),
    "interlaced": with_pixel_data(zlib.compress(interlaced(noise())), interlace=1),
    "bytes behind its end": png() + b"PK\x03\x04" + bytes(1000),
    "a huge text": png(before=TEXT, after=TEXT),
    "a text that says nothing": png(before=chunk(b"zTXt", b"no end")),
    "a damaged color profile": png(before=PROFILE),
    "gamma and color space": png(before=chunk(b"gAMA", b"\0\0\0\1") + chunk(b"sRGB", b"\0")),
    "a suggested palette": png(before=chunk(b"PLTE", bytes(range(9)))),
    "a part of nobody's": png(before=chunk(b"prIV", bytes(100))),
    "Exif as it stands": png(before=exif(1)),
    "Exif of nonsense": png(before=exif(99) + chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff") + chunk(b"eXIf", b"?")),
}
"""Files whose pixels are those of `noise`."""

REFUSED = {
    "empty": (b"", r"empty file \(0 bytes\)"),
    "a text": (b"no image", r"no PNG \(8 bytes\)"),
    "JPEG": (saved("RGB", "JPEG"), r"no PNG but JPEG \("),
    "CMYK JPEG": (saved("CMYK", "JPEG"), r"no PNG but JPEG \("),
    "GIF": (saved("P", "GIF"), r"no PNG but GIF \("),
    "TIFF": (saved("RGB", "TIFF"), r"no PNG but TIFF \("),
    "BMP": (saved("RGB", "BMP"), r"no PNG but BMP \("),
    "WebP": (saved("RGB", "WEBP"), r"no PNG but WebP \("),
    "16-bit RGB": (of_kind(noise().astype(">u2") * 257, depth=16, color=2), "16-bit RGB, expected 8-bit RGB"),
    "16-bit gray": (of_kind(noise()[..., :1].astype(">u2"), depth=16, color=0), "16-bit gray, expected"),
    "gray": (saved("L", "PNG"), "8-bit gray, expected 8-bit RGB"),
    "black and white": (saved("1", "PNG"), "1-bit gray, expected"),
    "gray with alpha": (saved("LA", "PNG"), "8-bit gray with transparency, expected"),
    "palette": (saved("P", "PNG"), "8-bit palette, expected"),
    "palette with transparency": (
        of_kind(noise()[..., :1], depth=8, color=PALETTE, before=chunk(b"PLTE", bytes(768)) + chunk(b"tRNS", b"\0")),
        "8-bit palette, expected",
    ),
    "alpha": (saved("RGBA", "PNG"), "8-bit RGB with transparency, expected 8-bit RGB"),
    "a transparent color": (png(before=chunk(b"tRNS", bytes(6))), "one color is transparent"),
    "an animation": (png(before=chunk(b"acTL", b"\0\0\0\2\0\0\0\0")), "an animation, expected a single picture"),
    "to be turned": (png(before=exif(6)), r"turned or mirrored \(Exif orientation 6\)"),
    "to be mirrored, least byte first": (png(before=exif(2, order="<")), r"mirrored \(Exif orientation 2\)"),
    "to be turned, said at the end": (png(after=exif(3)), r"Exif orientation 3\)"),
    "too large": (with_pixel_data(b"", width=60_000, height=60_000), "60000x60000 pixels cannot be right"),
    "too long": (with_pixel_data(b"", width=65_536, height=1), "65536x1 pixels cannot be right"),
    "no width": (with_pixel_data(b"", width=0), "0x16 pixels cannot be right"),
    "unknown color": (of_kind(noise(), depth=8, color=7), "8-bit color type 7, expected"),
    "unknown methods": (with_pixel_data(zlib.compress(rows(noise())), interlace=2), "methods that no PNG has"),
    "two headers": (png(before=header(20, 16, depth=16)), "its header is not at its start"),
    "no header": (SIGNATURE + chunk(b"IDAT") + chunk(b"IEND"), "its header is not at its start"),
    "a short header": (SIGNATURE + chunk(b"IHDR", bytes(12)), "its header has another length"),
    "no pixels": (SIGNATURE + header(20, 16) + chunk(b"IEND"), "its pixels are fewer than its header says"),
    "too few pixels": (
        with_pixel_data(zlib.compress(rows(noise())[:-60])),
        "its pixels are fewer than its header says",
    ),
    "pixels of nonsense": (
        with_pixel_data(b"nonsense"),
        "its pixels (cannot be decoded|are fewer than its header says)",
    ),
    "an unknown part that must be understood": (png(before=chunk(b"CgBI", bytes(4))), r"unknown kind b'CgBI'"),
    "too many parts": (png(before=chunk(b"prIV") * 100_001), "more than 100,000 parts cannot be right"),
}


@pytest.mark.parametrize("content", READ_RIGHT.values(), ids=READ_RIGHT)
def test_what_does_not_change_the_pixels_is_read_right(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    assert np.array_equal(read_png(tmp_path / "a.png"), noise())


@pytest.mark.parametrize(("content", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_whole_8_bit_rgb_is_refused_by_name(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"^a\.png: .*{expected}"):
        read_png(tmp_path / "a.png")


def test_a_file_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = png(noise(8, 6), n_parts=3, after=chunk(b"tEXt", b"Comment\0x"))
    for length in range(1, len(whole)):
        (tmp_path / "a.png").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"^a\.png: (truncated after|no PNG)"):
            read_png(tmp_path / "a.png")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    whole = png(noise(8, 6), n_parts=2, before=chunk(b"tEXt", b"Comment\0x"))
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ImageError, match=r"^a\.png: "):
            read_png(tmp_path / "a.png")


def test_what_is_no_file_or_gone_is_named_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    expected = {
        "folder": "no regular file",
        "pipe": "no regular file",
        "link": "No such file",
        "gone": "No such file",
    }
    for name, reason in expected.items():
        with pytest.raises(ImageError, match=rf"^{name}\.png: {reason}"):
            read_png(tmp_path / f"{name}.png")


def test_a_file_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.write(SIGNATURE)
        file.truncate(png_module.LARGEST_FILE + 1)
    with pytest.raises(ImageError, match="more than 100 MB cannot be right"):
        read_png(tmp_path / "a.png")


def test_no_bomb_takes_memory(tmp_path: Path) -> None:
    zeros = compressed_zeros(400_000_000)
    bombs = {
        "declared": with_pixel_data(zeros, width=100_000, height=100_000),
        "pixels": with_pixel_data(zeros),
        "text": png(before=chunk(b"zTXt", b"Comment\0\0" + zeros)),
        "international text": png(before=chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)),
        "profile": png(before=chunk(b"iCCP", b"name\0\0" + zeros)),
    }
    for name, content in bombs.items():
        assert len(content) < 3_000_000
        (tmp_path / f"{name}.png").write_bytes(content)
    code = (
        "import resource, sys; from pathlib import Path; from breakhis_pl.data.png import read_png; "
        "from breakhis_pl.errors import ImageError\n"
        "read_png(Path(sys.argv[1]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[2:]:\n"
        "    try: read_png(Path(path))\n"
        "    except ImageError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    (tmp_path / "plain.png").write_bytes(png())
    paths = [str(tmp_path / "plain.png"), *(str(tmp_path / f"{name}.png") for name in bombs)]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000  # kilobytes
