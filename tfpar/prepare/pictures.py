"""Any picture -> `uint8[height, width, channels]`, or the reason why not.

Pillow decodes, because TensorFlow's own decoders refuse CMYK, arithmetic-coded JPEG, WebP palettes and TIFF, ignore
the EXIF orientation, and silently read a truncated file. The suffix of a file does not matter, its bytes do.

Example:
    >>> pictures.load("cat.jpg", (224, 224)).shape
    (224, 224, 3)
"""

import contextlib
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import IcoImagePlugin, Image, ImageOps, UnidentifiedImageError

# Only formats that Pillow decodes itself: EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "ICO", "PPM", "AVIF")
Image.init()  # registers all readers; Image.open alone knows only some by name

# A few bytes may claim more than any camera makes, to exhaust the memory or the time. With these limits no file took
# more than 1.5 GB; of large ones only one is decoded at a time, whatever the number of threads.
PIXEL_LIMIT = 100_000_000
SIDE_LIMIT = 65_535  # the most a JPEG can say; Pillow needs 16 bytes for each row, however short
FILE_LIMIT = 4 * PIXEL_LIMIT  # bytes
HEADER_LIMIT = 1 << 24  # bytes: a list of a million strips takes hundreds of megabytes in Python
PIECES_LIMIT = 200_000  # reads of a header, and as many again of the rest; more where Python decodes it
PYTHON_LIMIT = 500_000  # values, pixels times channels, where Pillow decodes in Python: about a second
SCANS_LIMIT = 100  # of a progressive JPEG, usually ten; each goes over all pixels
COMMENTS_LIMIT = 100  # of a plain PPM; Pillow copies a million bytes for each
EXIF_LIMIT = 1 << 20  # bytes; in a JPEG it has 65,533 at most
LARGE = 10_000_000  # bytes or pixels
_BAND = 1 << 20  # pixels that are converted at a time

# What Pillow's readers raise for broken bytes; its own documentation names only the first.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, ZeroDivisionError,
    EOFError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION = 0x0112  # the EXIF tag
_BEGINNINGS = {  # of files that people take for pictures
    b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"ftypavif": "AVIF",
    b"ftyphei": "HEIC", b"ftypmif1": "HEIC", b"%PDF": "PDF", b"%!PS": "PostScript", b"<svg": "SVG", b"8BPS": "Photoshop",
    b"\xff\x0a": "JPEG XL", b"JXL \r\n": "JPEG XL", b"jP  \r\n": "JPEG 2000",
}  # fmt: skip
_ICON = b"\0\0\1\0"
_large = threading.RLock()  # held while a large picture is decoded


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
    with _one_large_at_a_time(_length(picture)), _opened(picture) as image:
        side = max(size)
        image.draft("RGB", (side, side))  # a JPEG twice as large, or more, is decoded at a fraction, which is faster
        with _one_large_at_a_time(image.width * image.height), _reasons():
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
    with _one_large_at_a_time(_length(picture)), _opened(picture) as image:
        turned = False
        with contextlib.suppress(_DECODER_ERRORS):  # in a TIFF Pillow has turned the size itself
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back Pillow's warnings and log of odd tags and of large pictures, which say nothing that a reason does not.

    For the main thread, around all its decoding: Python's filters of warnings are one for all threads.
    """
    log = logging.getLogger("PIL")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield
    finally:
        log.setLevel(level)


class _Pieces(io.BytesIO):
    """The bytes of a file, which end the reading when it is done in too many pieces."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.reads, self.bytes = PIECES_LIMIT, HEADER_LIMIT

    def read(self, count: int | None = -1, /) -> bytes:
        piece = super().read(count)
        self.reads -= 1
        if count is not None and count >= 0:  # some readers take the whole file at once, which is one copy of it
            self.bytes -= len(piece)
        if self.reads < 0 or self.bytes < 0:
            raise BadPicture("made to take long: its header is larger, or in more pieces, than any picture needs")
        return piece


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn what a decoder raises into a reason."""
    try:
        yield
    except BadPicture:
        raise
    except _DECODER_ERRORS as error:
        raise BadPicture(_reason(error)) from error


def _one_large_at_a_time(amount: int):
    """Wait until no other thread has a large picture in memory, where this one is large: `amount` of bytes or pixels."""
    return _large if amount > LARGE else contextlib.nullcontext()


def _opened(picture) -> Image.Image:
    """Return the picture with its header read and its limits checked, its pixels not decoded yet."""
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture.squeeze(-1) if picture.ndim == 3 and picture.shape[-1] == 1 else picture)
    content = picture if isinstance(picture, bytes) else _bytes(Path(picture))
    if not content:
        raise BadPicture("empty: the file has no bytes")
    file = _Pieces(content)
    try:
        with _reasons():
            if content.startswith(_ICON):
                _check_limits(_inside_icon(content))
            image = Image.open(file, formats=FORMATS)
    except BadPicture as reason:
        if isinstance(reason.__cause__, UnidentifiedImageError):
            raise BadPicture(_looks_like(content)) from reason
        raise
    if image.format == "PPM" and image.tile[0][3] == ("RGB", 65_535):  # 16 bits: Pillow's C code can do it too
        image.tile = [("raw", *image.tile[0][1:3], "RGB;16B")]
    _check_limits(image)
    if image.format in ("JPEG", "MPO") and (scans := content.count(b"\xff\xda")) > SCANS_LIMIT:
        raise BadPicture(f"made to take long: {scans:,} scans, the limit is {SCANS_LIMIT}")
    if image.format == "PPM" and image.tile[0][0] == "ppm_plain" and (comments := content.count(b"#")) > COMMENTS_LIMIT:
        raise BadPicture(f"made to take long: {comments:,} comments, the limit is {COMMENTS_LIMIT}")
    file.reads, file.bytes = PIECES_LIMIT + PYTHON_LIMIT * _in_python(image), 2 * FILE_LIMIT
    return image


def _check_limits(image: Image.Image) -> None:
    """Refuse a picture that is too large to be decoded."""
    limit = PIXEL_LIMIT // 2 if image.format == "WEBP" else PIXEL_LIMIT  # its decoder holds five copies
    if image.width * image.height > limit or max(image.size) > SIDE_LIMIT:
        claimed = f"claims {image.width}x{image.height} = {image.width * image.height:,} pixels"
        raise BadPicture(f"{claimed}, the limit is {limit:,}, and {SIDE_LIMIT:,} a side")
    values = image.width * image.height * len(image.getbands())
    if values > PYTHON_LIMIT and _in_python(image):
        slow = f"a {image.format} of a kind that is slow to decode"
        raise BadPicture(f"{slow}, {values:,} values, the limit is {PYTHON_LIMIT:,}; convert it to PNG")
    if len(image.info.get("exif", b"")) > EXIF_LIMIT:
        raise BadPicture(f"its EXIF block has {len(image.info['exif']):,} bytes, the limit is {EXIF_LIMIT:,}")


def _in_python(image: Image.Image) -> bool:
    """Tell whether pixels wait for a decoder that Pillow wrote in Python: plain and odd PPM, run-length BMP."""
    return any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", []))


def _inside_icon(content: bytes) -> Image.Image:
    """Return the picture in an icon with its header read; Pillow would decode it while it opens the icon."""
    entry = IcoImagePlugin.IcoFile(_Pieces(content)).entry[0]
    return Image.open(_Pieces(content[entry.offset :]), formats=("PNG", "DIB"))


def _decoded(image: Image.Image) -> Image.Image:
    """Return the picture with its pixels read, upright."""
    image.load()
    _check_limits(image)  # once more: a PNG may have its EXIF block at the end
    with contextlib.suppress(_DECODER_ERRORS):  # the pixels are good, the EXIF block is not
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _length(picture) -> int:
    if isinstance(picture, (bytes, np.ndarray)):
        return len(picture)
    with contextlib.suppress(OSError):  # what is wrong with it is said when it is read
        return os.stat(picture).st_size
    return 0


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # before it is opened: that alone may move a tape, or wait for a writer
            missing = "a link to nothing" if path.is_symlink() else "no such file"
            raise BadPicture("not a regular file" if path.exists() else missing)
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadPicture("not a regular file")
            if status.st_size > FILE_LIMIT:
                raise BadPicture(f"{status.st_size:,} bytes, the limit is {FILE_LIMIT:,}")
            return file.read(FILE_LIMIT)
    except OSError as error:
        raise BadPicture(f"cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file that may have become a pipe since it was looked at."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture as 8-bit RGB or gray, whatever its pixels were."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    shift = _shift(image)
    result = Image.new(mode, image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):  # band by band: the memory holds no third copy
        band = _plain_band(image.crop((0, top, image.width, min(top + rows, image.height))), shift)
        result.paste(band if band.mode == mode else band.convert(mode), (0, top))
    return result


def _shift(image: Image.Image) -> int:
    """Return by how many bits the whole numbers of a picture are above eight."""
    if image.mode == "F":
        raise BadPicture("its pixels are floating-point numbers without a known range")
    if image.mode != "I":
        twelve = image.format == "TIFF" and image.tag_v2.get(258) == (12,)
        return 4 if twelve else 8
    low, high = image.getextrema()  # 32 bits, which hold fewer: nobody says how many
    if low < 0 or high > 65_535:
        raise BadPicture("its pixels are 32-bit numbers without a known range")
    return 8 if image.format == "PPM" or high > 255 else 0


def _plain_band(image: Image.Image, shift: int) -> Image.Image:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip, not scale
        wide = np.asarray(image)
        gray = (wide >> shift).astype(np.uint8)
        gray[wide == image.info.get("transparency", -1)] = 255
        return Image.fromarray(gray)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)  # the bits of alpha_composite, in a quarter of its time
        return white
    return image.convert("RGB")


def _looks_like(content: bytes) -> str:
    head = content[:512]
    for beginning, name in _BEGINNINGS.items():
        if head.startswith((beginning, head[:4] + beginning)) or (name == "SVG" and beginning in head):
            if name in FORMATS:
                return f"damaged: it begins as a {name} and does not go on as one"
            return f"{name}, which is not read here; convert it to JPEG or PNG"
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
