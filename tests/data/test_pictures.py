import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from breakhis_pl.data import pictures
from breakhis_pl.data.pictures import FORMATS, read_picture
from breakhis_pl.data.png import read_png
from breakhis_pl.errors import ImageError
from tests.data.png_files import noise as png_noise
from tests.data.png_files import png

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
LOSSLESS = ("png", "tif", "bmp", "webp", "jp2", "ppm", "pcx", "sgi")


def saved(folder: Path, name: str, image: Image.Image, **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels_of(path: Path) -> np.ndarray:
    return read_picture(path).pixels


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_every_lossless_format_gives_the_same_pixels(suffix: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, f"a.{suffix}", Image.fromarray(PIXELS), **options)
    assert np.array_equal(pixels_of(path), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "avif"])
def test_lossy_formats_give_the_size(suffix: str, tmp_path: Path) -> None:
    picture = read_picture(saved(tmp_path, f"a.{suffix}", Image.fromarray(PIXELS)))
    assert (picture.width, picture.height) == (30, 20)
    assert picture.pixels.dtype == np.uint8


def test_a_plain_png_is_read_as_in_training(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(png_noise()))
    assert np.array_equal(pixels_of(path), read_png(path))


def test_gray_is_the_same_in_all_channels(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.fromarray(PIXELS[..., 0]))
    assert np.array_equal(pixels_of(path), np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_sixteen_bits_the_upper_eight_are_taken(suffix: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    path = saved(tmp_path, f"a.{suffix}", Image.fromarray(values))
    assert np.array_equal(pixels_of(path)[..., 1], (values >> 8).astype(np.uint8))


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    pixels = pixels_of(saved(tmp_path, "a.png", image))
    assert pixels[2, 1].tolist() == [10, 20, 30]
    assert pixels[0, 0].tolist() == [255, 255, 255]


def test_a_transparent_color_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    pixels = pixels_of(saved(tmp_path, "a.gif", image, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [200, 10, 10]


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_cmyk_becomes_the_color_that_it_prints(suffix: str, tmp_path: Path) -> None:
    red = pixels_of(saved(tmp_path, f"a.{suffix}", Image.new("CMYK", (8, 8), (0, 255, 255, 0))))[4, 4]
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_picture_is_turned_as_its_camera_says(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    image.paste((255, 255, 255), (0, 0, 15, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left comes to the top
    picture = read_picture(saved(tmp_path, f"a.{suffix}", image, exif=exif))
    assert (picture.width, picture.height) == (20, 30)
    assert picture.pixels[:12].min() > 240
    assert picture.pixels[-12:].max() < 15


def test_of_several_frames_the_first_is_taken(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    for suffix in ("gif", "tif", "webp"):
        path = saved(tmp_path, f"a.{suffix}", first, save_all=True, append_images=[second])
        assert pixels_of(path)[4, 4, 0] > 240


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "a.tif", Image.new(mode, (8, 8)))
    with pytest.raises(ImageError, match=f"32 bits per pixel \\(Pillow's mode {mode}\\)"):
        read_picture(path)


def test_colors_that_need_a_profile_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.tif", Image.new("LAB", (8, 8)))
    with pytest.raises(ImageError, match=r"^colors in L\*a\*b\*; expected RGB, gray or CMYK"):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"plain text", "no picture of a kind that is read here"),
        (png()[:-40], "damaged"),
        (png()[:60] + bytes([png()[60] ^ 1]) + png()[61:], "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture of a kind that is read here"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_its_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        read_picture(tmp_path / "a.png")


def test_a_jpeg_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.jpg", Image.fromarray(PIXELS))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="damaged: image file is truncated"):
        read_picture(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "a.png", Image.new("1", (9_000, 9_000)))
    with pytest.raises(ImageError, match="9000x9000 pixels, expected at most 80,000,000"):
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(ImageError, match="more pixels than can be right"):
        read_picture(path)


def test_a_picture_much_longer_than_wide_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.png", Image.new("1", (1, 65_536)))
    with pytest.raises(ImageError, match="1x65536 pixels, expected sides of at most 65,535"):
        read_picture(path)
    assert read_picture(saved(tmp_path, "b.png", Image.new("1", (1, 65_535)))).height == 65_535


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (("none.png", "No such file"), (".", "no regular file"), ("pipe.png", "no regular file")):
        with pytest.raises(ImageError, match=reason):
            read_picture(tmp_path / name)


def test_a_lack_of_memory_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pictures, "_plain_rgb", full)
    with pytest.raises(ImageError, match="not enough memory"):
        read_picture(saved(tmp_path, "a.png", Image.fromarray(PIXELS)))


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [saved(tmp_path, f"{number}.png", Image.fromarray(PIXELS)) for number in range(4)]
    monkeypatch.setattr(pictures, "SEVERAL_AT_ONCE", 10)
    inside, most = [0], [0]
    plain = pictures._plain_rgb
    both_could = threading.Event()

    def counted(picture: Image.Image) -> Image.Image:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        both_could.wait(0.05)
        inside[0] -= 1
        return plain(picture)

    monkeypatch.setattr(pictures, "_plain_rgb", counted)
    threads = [threading.Thread(target=read_picture, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_no_format_starts_another_program_or_is_told_by_its_suffix() -> None:
    assert not {"EPS", "WMF", "TGA"} & set(FORMATS)
