"""Pictures from this disk, of known formats and bounded size; all else is refused in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenreduce.data import images
from tokenreduce.data.images import FORMATS, load_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "dots.png"
    values = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def refusal(path: str | Path) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        load_image(path)
    message = str(caught.value)
    assert Path(str(path)).name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_known_formats_open(picture: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"copy.{kind.lower()}"
    Image.open(picture).save(path, kind)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 40))


def test_the_name_says_nothing(picture: Path, tmp_path: Path) -> None:
    """The content decides: a PNG may be called .jpg, a text file may not be called .png."""
    picture.rename(tmp_path / "wrong.jpg")
    assert load_image(tmp_path / "wrong.jpg").size == (30, 40)
    (tmp_path / "text.png").write_text("not a picture")
    assert "not a picture of a known format (JPEG" in refusal(tmp_path / "text.png")


def test_other_formats_are_refused(picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.tiff"
    Image.open(picture).save(path)
    assert "convert it" in refusal(path)


@pytest.mark.parametrize(
    "address", ["https://example.org/cat.png", "file:///cat.png", "s3://b/cat.png"]
)
def test_addresses_are_refused(address: str) -> None:
    assert "address" in refusal(address)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.png")
    assert "folder" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused(
    picture: Path, tmp_path: Path, kind: str, share: float
) -> None:
    whole = tmp_path / f"whole.{kind.lower()}"
    Image.open(picture).save(whole, kind)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{kind.lower()}"
    cut.write_bytes(data[: int(len(data) * share)])
    refusal(cut)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refusal(tmp_path / "empty.png")


def bomb(path: Path, width: int, height: int) -> Path:
    """A few bytes that claim to be a picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_too_many_pixels_are_refused(tmp_path: Path, side: int) -> None:
    """Above our limit, above Pillow's warning, above Pillow's error; before anything is decoded."""
    assert "64 million pixels" in refusal(bomb(tmp_path / "bomb.png", side, side))


def test_too_many_bytes_are_refused(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert "MiB" in refusal(picture)


def test_pictures_stand_upright(tmp_path: Path) -> None:
    """A camera's orientation tag is applied."""
    image = Image.new("RGB", (20, 10), "red")
    tags = Image.Exif()
    tags[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=tags)
    assert load_image(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "clear.png")
    loaded = load_image(tmp_path / "clear.png")
    assert loaded.getpixel((3, 3)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) == (0, 0, 0)


def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.gif")
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)
    assert load_image(tmp_path / "palette.gif").mode == "RGB"
