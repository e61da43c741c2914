"""Any picture -> `uint8[height, width, channels]`, or the reason why not.

Pillow decodes, because TensorFlow's own decoders refuse CMYK, arithmetic-coded JPEG, WebP palettes and TIFF, ignore
the EXIF orientation, and read a cut-off file without a word. The suffix of a file does not matter, its bytes do.

Example:
    >>> pictures.load("cat.jpg", (224, 224)).shape
    (224, 224, 3)
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Only formats that Pillow decodes itself: EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "ICO", "PPM", "AVIF")
Image.init()  # registers all readers; Image.open alone knows only some by name
PIXEL_LIMIT = 100_000_000  # a header may claim more than any camera makes, to exhaust the memory

# What Pillow's readers raise for broken bytes; its own documentation names only the first.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
    EOFError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag


class BadPicture(ValueError):
    """These bytes do not become a picture; the message is the reason, for a person to read."""


def load(picture: str | os.PathLike | bytes | np.ndarray, size: tuple[int, int], *, channels: int = 3) -> np.ndarray:
    """Decode one picture, turn it upright, resize it keeping its aspect, and crop its centre.

    Transparent parts become white, 16-bit values keep their upper eight bits, an animation gives its first frame.

    Args:
        picture: a path, the bytes of a picture file, or pixels `uint8[height, width]` or `[height, width, channels]`.
        size: height and width of the result, in pixels.
        channels: 3 for RGB, 1 for gray.

    Returns:
        `uint8[height, width, channels]`.

    Raises:
        BadPicture: with the reason.
    """
    if isinstance(picture, np.ndarray) and picture.shape == (*size, channels):
        return picture
    height, width = size
    with _opened(picture) as image:
        side = max(size)
        image.draft("RGB", (side, side))  # a JPEG twice as large, or more, is decoded at a fraction, which is faster
        upright = _plain(_decoded(image), "L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(height, width, channels)


def size(picture: str | os.PathLike | bytes | np.ndarray) -> tuple[int, int]:
    """Return height and width of a picture as it is looked at, from its header alone.

    Raises:
        BadPicture: with the reason.
    """
    if isinstance(picture, np.ndarray):
        return picture.shape[:2]
    with _opened(picture) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        except _DECODER_ERRORS:
            turned = False
        return (image.width, image.height) if turned else (image.height, image.width)


def _opened(picture) -> Image.Image:
    """Return the picture with its header read and judged, its pixels not decoded yet."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    content = picture if isinstance(picture, bytes) else _bytes(Path(picture))
    if not content:
        raise BadPicture("empty: the file has no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise BadPicture(_looks_like(content)) from error
    except _DECODER_ERRORS as error:
        raise BadPicture(_reason(error)) from error
    if image.width * image.height > PIXEL_LIMIT:
        raise BadPicture(
            f"claims {image.width}x{image.height} = {image.width * image.height:,} pixels, the limit is {PIXEL_LIMIT:,}"
        )
    return image


def _decoded(image: Image.Image) -> Image.Image:
    """Return the picture with its pixels read, upright."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF blocks, which do not matter here
        try:
            image.load()
        except _DECODER_ERRORS as error:
            raise BadPicture(_reason(error)) from error
        with contextlib.suppress(_DECODER_ERRORS):  # the pixels are good, the EXIF block is not
            ImageOps.exif_transpose(image, in_place=True)
        return image


def _bytes(path: Path) -> bytes:
    try:
        if path.is_symlink() and not path.exists():
            raise BadPicture("a link to nothing")
        if not path.is_file():
            raise BadPicture("not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from error


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture as 8-bit RGB or gray, whatever its pixels were."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits, sometimes held in 32: Pillow's own conversion would clip, not scale
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8 if wide.max(initial=0) > 255 else wide).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise BadPicture("its pixels are floating-point numbers without a known range")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode)


def _looks_like(content: bytes) -> str:
    head = content[:512]
    if not any(byte < 9 for byte in head):
        return "text, not a picture"
    return "not a picture, or of a kind that cannot be read here"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text:
        return f"truncated: {text}"
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", text)
        return f"claims {format(int(pixels[1]), ',') if pixels else 'too many'} pixels, the limit is {PIXEL_LIMIT:,}"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"damaged: {text}"
