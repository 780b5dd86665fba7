"""Opens pictures that people name: from this disk only, of known formats and bounded size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokenreduce.errors import BadOption
from tokenreduce.files import named

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6
"""The largest cameras stay below. Pillow holds four bytes of each pixel: 256 MB.

While a picture is read there are two of that size at most, what was decoded and what is made of it.
"""
STRIP = 2**20
"""Pixels that are converted at a time, where that takes more than one step."""
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
"""Modes whose values go from 0 to 65,535."""
RANGELESS = {"I": "32-bit integers", "F": "32-bit floats"}
"""Modes that do not say which of their values is black and which white."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture with that entry of its EXIF upright."""


def load_image(path: str | Path) -> Image.Image:
    """The picture at `path` in RGB, upright, on white where it is transparent.

    The first frame of an animation. What a file claims to be is checked before it is decoded.

    Raises:
        ValueError: an address instead of a path, no file there, a file that is too large, not of
            the known formats, or damaged; the message names the file and the way out.
    """
    file = _checked_file(path)
    return _decoded(file, str(file))


def check_image(path: str | Path) -> None:
    """Refuses what `load_image` would, as far as the beginning of the file tells.

    Raises:
        ValueError: as `load_image`; pixels that are damaged or cut short are found there only.
    """
    file = _checked_file(path)
    with _opened(file, str(file)):
        pass


def decode_image(data: bytes, name: str) -> Image.Image:
    """The same from the bytes of a file, which `name` tells in messages.

    Raises:
        ValueError: as `load_image`.
    """
    _check_bytes(len(data), name)
    return _decoded(io.BytesIO(data), name)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture in RGB, upright, on white where it is transparent; always a new one.

    Sixteen bits become eight: 65,535 is white.

    Raises:
        ValueError: a mode whose range is not known (32 bits).
    """
    return _turned(in_rgb(image), image.getexif().get(ORIENTATION))


def in_rgb(image: Image.Image) -> Image.Image:
    """The same as it is, whatever its EXIF says about up and down."""
    if image.mode in RANGELESS:
        raise NoRange(
            f"a picture of {RANGELESS[image.mode]} (mode {image.mode!r}) does not say which value "
            "is white: scale it to 0 to 255 and convert it to 8 bits"
        )
    if image.mode not in (*SIXTEEN, "La") and not image.has_transparency_data:
        return image.convert("RGB")
    flat = Image.new("RGB", image.size)
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        flat.paste(_on_white(image.crop(box)), box)
    return flat


def _decoded(source: Path | io.BytesIO, file: str) -> Image.Image:
    with _opened(source, file) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        found = in_rgb(image)
        image.close()  # before there is a turned copy as well
    return _turned(found, orientation)


@contextmanager
def _opened(source: Path | io.BytesIO, file: str) -> Iterator[Image.Image]:
    """A picture of a known format and bounded size; what its decoder says is put in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                _check_pixels(image, file)
                yield image
    except (TooLarge, NoRange):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise TooLarge(_too_many_pixels(file)) from None
    except UnidentifiedImageError:
        raise BadOption(
            f"image {file!r} is not a picture of a known format ({', '.join(FORMATS)}): "
            "convert it to one of them"
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise BadOption(
            f"image {file!r} is damaged or cut short ({error}): copy or save it again"
        ) from None


class TooLarge(BadOption):
    """A picture with more pixels or bytes than is sensible to decode."""


class NoRange(BadOption):
    """A picture of numbers that may mean any brightness."""


def _checked_file(path: str | Path) -> Path:
    if "://" in str(path):
        raise BadOption(
            f"image {str(path)!r} is an address: only files on this disk are opened; "
            "download it and give the path"
        )
    file = named(path, "image")
    if file.is_dir():
        raise BadOption(f"image {str(file)!r} is a folder: give the path of one picture")
    if not file.is_file():
        raise BadOption(f"image {str(file)!r} does not exist: check the path (from {Path.cwd()})")
    _check_bytes(file.stat().st_size, str(file))
    return file


def _check_bytes(size: int, file: str) -> None:
    if size > MAX_BYTES:
        raise TooLarge(
            f"image {file!r} has {size / 2**20:.0f} MiB, more than {MAX_BYTES / 2**20:.0f}: "
            "scale it down or compress it"
        )


def _check_pixels(image: Image.Image, file: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(_too_many_pixels(file, f"{image.width} x {image.height}, "))


def _too_many_pixels(file: str, size: str = "") -> str:
    return (
        f"image {file!r} has {size}more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down"
    )


def _turned(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = None if orientation is None else TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _on_white(part: Image.Image) -> Image.Image:
    """A strip of a picture that is deeper than eight bits, or transparent somewhere."""
    clear = part.info.get("transparency")
    if part.mode in SIXTEEN:
        values = np.asarray(part)
        eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if clear is not None:
            eight[values == clear] = 255
        return Image.fromarray(eight).convert("RGB")
    if part.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        # of a file of 16 bits, of which Pillow reads the upper eight
        part.info["transparency"] = tuple(value >> 8 for value in clear)
    layer = (part.convert("LA") if part.mode == "La" else part).convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
