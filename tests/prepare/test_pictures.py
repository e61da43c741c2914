"""Any picture becomes pixels or a reason."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from tfpar.prepare import pictures


def encoded(image, kind="png", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


RED = Image.new("RGB", (40, 20), (200, 10, 10))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp", "tiff", "avif"])
def test_formats(kind):
    pixels = pictures.load(encoded(RED, kind), (10, 12))
    assert pixels.shape == (10, 12, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 10, 10)).max() < 12


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (9, 9), 77), (77, 77, 77)),
        (Image.new("1", (9, 9), 1), (255, 255, 255)),
        (RED.quantize(2), (200, 10, 10)),
        (Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (0, 0, 255, 128)), (127, 127, 255)),
        (Image.fromarray(np.full((9, 9), 0x8040, np.uint16)), (128, 128, 128)),
    ],
)
def test_modes_become_rgb(image, expected):
    assert np.abs(pictures.load(encoded(image), (9, 9)).astype(int) - expected).max() <= 1


def test_cmyk_and_gray():
    assert np.abs(pictures.load(encoded(RED.convert("CMYK"), "jpeg"), (8, 8)).astype(int) - (200, 10, 10)).max() < 12
    assert pictures.load(encoded(RED), (8, 8), channels=1).shape == (8, 8, 1)


def test_keeps_the_aspect_and_crops_the_centre():
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste("white", (20, 0, 40, 20))
    assert pictures.load(encoded(wide), (20, 20)).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    corner = Image.new("RGB", (40, 20), "black")
    corner.paste("white", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(corner, "png", exif=exif)
    height, width = pictures.size(content)
    assert (height, width) == ((20, 40) if orientation < 5 else (40, 20))
    bright = pictures.load(content, (height, width))[:, :, 0] > 128
    row, column = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    lit = [bool(bright[r, c]) for r in row for c in column]
    place = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert lit == [i == place for i in range(4)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is no picture", "text, not a picture"),
        (encoded(RED)[:60], "truncated|damaged"),
        (encoded(Image.effect_noise((90, 90), 50), "jpeg")[:-900], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged|not a picture"),
        (b"BM" + bytes(100), "damaged|not a picture"),
    ],
)
def test_reasons(content, reason):
    with pytest.raises(pictures.BadPicture, match=reason):
        pictures.load(content, (8, 8))


def test_a_header_that_claims_too_much_is_refused_before_it_is_decoded():
    content = bytearray(encoded(Image.new("L", (8, 8)), "bmp"))
    for side, reason in ((11000, "claims 11000x11000 = 121,000,000 pixels"), (20000, "claims 400,000,000 pixels")):
        content[18:26] = side.to_bytes(4, "little") * 2
        with pytest.raises(pictures.BadPicture, match=reason):
            pictures.load(bytes(content), (8, 8))


def test_paths(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for path, reason in (
        (tmp_path / "link", "link to nothing"),
        (tmp_path, "not a regular file"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(pictures.BadPicture, match=reason):
            pictures.load(path, (8, 8))


def test_the_odd_files_each_become_pixels_or_a_reason(shared):
    with open(shared / "odd_images" / "MANIFEST.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) >= 42
    for row in rows:
        decodes = "FAILS" not in row["what Pillow 13.0 says"]
        try:
            assert pictures.load(shared / "odd_images" / row["file"], (32, 32)).shape == (32, 32, 3)
        except pictures.BadPicture as reason:
            assert not decodes, (row["file"], str(reason))
        else:
            assert decodes, row["file"]
