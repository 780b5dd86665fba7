"""Opens pictures that people name: from this disk only, of known formats and bounded size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6  # a 192 MB array; the largest cameras stay below


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
    """An opened picture in RGB, upright, on white where it is transparent."""
    return _on_white(ImageOps.exif_transpose(image))


def _decoded(source: Path | io.BytesIO, file: str) -> Image.Image:
    with _opened(source, file) as image:
        image.load()
        return to_rgb(image)


@contextmanager
def _opened(source: Path | io.BytesIO, file: str) -> Iterator[Image.Image]:
    """A picture of a known format and bounded size; what its decoder says is put in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                _check_pixels(image, file)
                yield image
    except TooLarge:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise TooLarge(_too_many_pixels(file)) from None
    except UnidentifiedImageError:
        raise ValueError(
            f"image {file!r} is not a picture of a known format ({', '.join(FORMATS)}): "
            "convert it to one of them"
        ) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(
            f"image {file!r} is damaged or cut short ({error}): copy or save it again"
        ) from None


class TooLarge(ValueError):
    """A picture with more pixels or bytes than is sensible to decode."""


def _checked_file(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(
            f"image {str(path)!r} is an address: only files on this disk are opened; "
            "download it and give the path"
        )
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(f"image {str(file)!r} is a folder: give the path of one picture")
    if not file.is_file():
        raise ValueError(f"image {str(file)!r} does not exist: check the path (from {Path.cwd()})")
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


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
