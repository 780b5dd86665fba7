"""Pictures from this disk, of known formats and bounded size; all else is refused in one line."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tokenreduce.data import images
from tokenreduce.data.images import FORMATS, SIXTEEN, decode_image, in_rgb, load_image, to_rgb
from tokenreduce.data.items import Item
from tokenreduce.data.rows import Conversation, Unusable


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


def png(
    width: int, height: int, rows: bytes, *, depth: int = 8, colours: int = 2, clear: bytes = b""
) -> bytes:
    """A file of those rows, each behind the byte of its filter."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if clear:
        parts.insert(1, chunk(b"tRNS", clear))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(path: Path, width: int, height: int) -> Path:
    """A few bytes that claim to be a picture of that size."""
    path.write_bytes(png(width, height, b"\0" * 100))
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


GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_a_file_of_16_bits_is_the_picture_of_8(tmp_path: Path) -> None:
    """Pillow's own conversion clips: whatever is not nearly black becomes white."""
    Image.fromarray(GREYS).save(tmp_path / "8.png")
    Image.fromarray(GREYS.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = (np.asarray(load_image(tmp_path / f"{n}.png")) for n in (8, 16))
    assert np.array_equal(sixteen, eight)
    nearly = Image.fromarray(np.array([[128, 129, 65406, 65407]], dtype=np.uint16))
    assert np.asarray(to_rgb(nearly))[0, :, 0].tolist() == [0, 1, 254, 255]  # rounded


@pytest.mark.parametrize("mode", SIXTEEN)
def test_every_mode_of_16_bits(mode: str) -> None:
    order = {"I;16": "<", "I;16L": "<", "I;16B": ">", "I;16N": "="}[mode]
    deep = Image.frombytes(mode, (16, 16), (GREYS.astype(f"{order}u2") * 257).tobytes())
    assert np.array_equal(np.asarray(to_rgb(deep))[..., 0], GREYS)


def test_the_clear_value_of_16_bits() -> None:
    """Grey and coloured: what the file calls transparent is white, and nothing else is."""
    grey = b"\0" + struct.pack(">2H", 1000, 2570)
    made = decode_image(png(2, 1, grey, depth=16, colours=0, clear=struct.pack(">H", 1000)), "x")
    assert np.asarray(made)[0].tolist() == [[255] * 3, [10] * 3]
    coloured = b"\0" + struct.pack(">6H", 1000, 2000, 3000, 2570, 0, 0)
    clear = struct.pack(">3H", 1000, 2000, 3000)
    made = decode_image(png(2, 1, coloured, depth=16, clear=clear), "x")
    assert np.asarray(made)[0].tolist() == [[255] * 3, [10, 0, 0]]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_without_a_range_are_refused(kind: type) -> None:
    """From 0 to 1, to 255 or to a sensor's last value: nobody can know which of them is white."""
    deep = Image.fromarray(GREYS.astype(kind))
    with pytest.raises(ValueError, match=r"32-bit .*mode '[FI]'.* convert it to 8 bits"):
        in_rgb(deep)
    with pytest.raises(Unusable, match="does not say which value is white"):
        Conversation("1", (deep,), ()).pictures()
    with pytest.raises(ValueError, match="does not say which value is white"):
        Item(0, deep, "kind", "question", "answer").picture()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "La", "RGBa", "PA", "P"])
def test_a_picture_in_strips_is_the_picture_at_once(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (23, 9, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    image = image.convert("LA").convert(mode) if mode in ("La", "PA") else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    straight = image.convert("LA") if mode == "La" else image
    white = Image.new("RGBA", image.size, "white")
    wanted = Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")
    monkeypatch.setattr(images, "STRIP", 20)  # two rows
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(wanted))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int) -> None:
    """As Pillow turns them."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "turned.png", exif=tags)
    with Image.open(tmp_path / "turned.png") as image:
        wanted = in_rgb(ImageOps.exif_transpose(image))
        assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(wanted))
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), np.asarray(wanted))


LARGEST = """
import resource, sys
from tokenreduce.data.images import load_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
assert load_image(sys.argv[1]).size == (8000, 8000)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_the_largest_picture_takes_twice_its_pixels(tmp_path: Path) -> None:
    """Transparent, and to be turned: four copies, where each step keeps what it came from."""
    tags = Image.Exif()
    tags[0x0112] = 6
    path = tmp_path / "large.png"
    Image.new("RGBA", (8000, 8000), (9, 9, 9, 128)).save(path, exif=tags, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", LARGEST, path], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 2.3 * 4 * images.MAX_PIXELS
