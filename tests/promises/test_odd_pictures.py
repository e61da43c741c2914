"""Files made to exhaust the memory or the time, or simply odd: each becomes pixels or a reason, within bounds."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from tfpar import prepare
from tfpar.prepare import pictures

MEMORY = 1.5e9  # bytes at the peak, of any file
SECONDS = 30  # of any file; two on an idle machine


def encoded(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


NOISE = Image.effect_noise((64, 48), 60).convert("RGB")
KINDS = ["png", "jpeg", "bmp", "gif", "webp", "tiff", "ico", "ppm", "avif"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def late_exif(block):
    whole = encoded(NOISE, "png")
    return whole[:-12] + chunk(b"eXIf", block) + whole[-12:]


def png(width, height, *chunks, bits=8, color=2, rows=b""):
    """Return a PNG with some more chunks before its pixels; `rows` is one row, repeated."""
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(b"\0" + rows) for _ in range(height if rows else 0)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*more) for more in chunks), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(width, height, *, strips=1, compression=1, bits=8, pixels=b""):
    """Return a gray TIFF."""
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1), (273, 4, strips, 122),
        (277, 3, 1, 1), (278, 4, 1, -(-height // strips)), (279, 4, strips, 122 if strips > 1 else len(pixels)),
    ]  # fmt: skip
    listed = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4) + pixels


def bmp(width, height, *, compression=0, bits=24, pixels=b""):
    palette = bytes(1024) if bits == 8 else b""
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def ico(inner):
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def webp(width, height):
    """Return an animation whose canvas is large and whose one frame is small."""
    frame = encoded(Image.new("RGB", (16, 16)), "webp")[12:]
    canvas = bytes([2, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    moving = b"ANMF" + struct.pack("<I", 16 + len(frame)) + bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + frame
    body = b"VP8X" + struct.pack("<I", 10) + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6) + moving
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg_of_many_scans(side, scans):
    whole = encoded(Image.new("L", (side, side)), "jpeg", progressive=True)
    return whole[:-2] + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10\0\0\0\0" * scans + whole[-2:]


def with_size(content, marker, width, height):
    """Return a JPEG that claims another size."""
    place = content.index(marker) + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


JPEG = encoded(NOISE, "jpeg")
BOMB = zlib.compress(bytes(60_000_000), 9)
LARGE = 9990  # 99.8 million pixels in a square
PIXELS = "pixels"

ODD = {
    # what is claimed
    "png": (lambda: png(2**31 - 1, 2**31 - 1), "claims"),
    "png of no width": (lambda: png(0, 5), "begins as a PNG"),
    "png of one column": (lambda: png(1, 90_000_000), "claims 1x90000000"),
    "bmp": (lambda: bmp(2**31 - 1, 2**31 - 1), "claims"),
    "bmp of negative size": (lambda: bmp(-10, -10), "claims"),
    "bmp without pixels": (lambda: bmp(LARGE, LARGE), "truncated"),
    "gif": (lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(NOISE, "gif")[10:], "claims"),
    "jpeg": (lambda: with_size(JPEG, b"\xff\xc0", 65535, 65535), "claims"),
    "webp": (lambda: webp(16384, 16384), "claims"),
    "webp of 60 million": (lambda: webp(8000, 7500), "claims 8000x7500"),
    "tiff": (lambda: tiff(2**31 - 1, 2**31 - 1), "claims"),
    "ppm": (lambda: b"P6 99999999 99999999 255\n", "claims"),
    "ppm without pixels": (lambda: b"P6 9990 9990 255\n", "truncated"),
    "plain ppm without pixels": (lambda: b"P3 9990 9990 255\n1 2 3", "slow to decode, 299,400,300 values"),
    "icon inside": (lambda: ico(png(13000, 13000, bits=1, color=0, rows=bytes(1625))), "claims 13000x13000"),
    "icon outside": (lambda: ico(struct.pack("<IiiHHIIiiII", 40, 12000, 24000, 1, 32, 0, 0, 0, 0, 0, 0)), "claims"),
    # what is large, and may be
    "png rgba": (lambda: png(LARGE, LARGE, color=6, rows=bytes(4 * LARGE)), PIXELS),
    "png gray and alpha": (lambda: png(LARGE, LARGE, color=4, rows=bytes(2 * LARGE)), PIXELS),
    "png 16 bits": (lambda: png(LARGE, LARGE, bits=16, color=0, rows=bytes(2 * LARGE)), PIXELS),
    "gif of one small frame": (lambda: b"GIF89a" + struct.pack("<HH", LARGE, LARGE) + encoded(NOISE, "gif")[10:], PIXELS),
    "jpeg progressive": (lambda: with_size(encoded(NOISE, "jpeg", progressive=True), b"\xff\xc2", LARGE, LARGE), PIXELS),
    "webp of 49 million": (lambda: webp(7000, 7000), PIXELS),
    "ppm of 16 bits": (lambda: b"P6 5000 4000 65535\n" + bytes(120_000_000), PIXELS),
    # what Pillow decodes in Python
    "ppm up to 100": (lambda: b"P6 1732 1732 100\n" + bytes(3 * 1732**2), "slow to decode, 8,999,472 values"),
    "ppm up to 1000, small": (lambda: b"P6 400 400 1000\n" + bytes(6 * 400**2), PIXELS),
    "plain ppm": (lambda: b"P3 1732 1732 255\n" + b"0 " * (3 * 1732**2), "slow to decode, 8,999,472 values"),
    "plain ppm, small": (lambda: b"P3 400 400 255 # a comment\n" + b"99 " * (3 * 400**2), PIXELS),
    "plain pbm of comments": (lambda: b"P1 700 700\n" + b"#\n" * 4_000_000, "4,000,000 comments"),
    "bmp of runs": (lambda: bmp(1500, 1500, compression=1, bits=8, pixels=b"\1\7" * 2_000_000), "slow to decode, 2,250,000"),
    "bmp of runs, small": (lambda: bmp(400, 400, compression=1, bits=8, pixels=(b"\1\7" * 400 + b"\0\0") * 400), PIXELS),
    "bmp of runs of nothing": (lambda: bmp(700, 700, compression=1, bits=8, pixels=b"\xff\7" * 2_000_000), "made to take long"),
    "bmp of jumps": (lambda: bmp(LARGE, LARGE, compression=1, bits=8, pixels=b"\0\2\xff\xff" * 500), "slow to decode"),
    "icon of runs": (lambda: ico(bmp(9000, 9000, compression=1, bits=8, pixels=b"\1\7\0\0" * 9000)[14:]), "slow to decode"),
    # what unpacks
    "png ztxt": (lambda: png(4, 4, (b"zTXt", b"a\0\0" + BOMB)), "damaged"),
    "png itxt": (lambda: png(4, 4, (b"iTXt", b"a\0\1\0\0\0" + BOMB)), "damaged"),
    "png iccp": (lambda: png(4, 4, (b"iCCP", b"a\0\0" + BOMB)), "damaged"),
    # what is in many pieces
    "png chunks": (lambda: png(4, 4, *[(b"prVt", b"x")] * 300_000), "made to take long"),
    "png in many pieces": (lambda: png(999, 999, *[(b"IDAT", b"")] * 300_000), "made to take long"),
    "png exif after its pixels": (lambda: late_exif(bytes(2 << 20)), r"EXIF block has 2,097,15\d bytes"),
    "png exif": (lambda: png(4, 4, (b"eXIf", bytes(2 << 20))), r"EXIF block has 2,097,15\d bytes"),
    "jpeg comments": (lambda: JPEG[:2] + b"\xff\xfe\0\2" * 400_000 + JPEG[2:], "made to take long"),
    "jpeg filled": (lambda: JPEG[:2] + b"\xff" * 20_000_000 + JPEG[2:], "made to take long"),
    "jpeg scans": (lambda: jpeg_of_many_scans(3000, 5000), "5,006 scans"),
    "ppm comment": (lambda: b"P6 #" + b"x" * 20_000_000 + b"\n4 4 255\n" + bytes(48), "made to take long"),
    "ppm number": (lambda: b"P6 " + b"9" * 10_000_000 + b" 4 255\n", "damaged"),
    "tiff strips": (lambda: tiff(LARGE, LARGE, strips=5_000_000, pixels=bytes(40_000_000)), "made to take long"),
    "tiff that points at itself": (lambda: encoded(NOISE, "tiff")[:-4] + b"\x08\0\0\0", PIXELS),
    # what is something else
    "svg": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, which is not read here"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, which is not read here"),
    "pdf": (lambda: b"%PDF-1.7\n", "PDF, which is not read here"),
    "heic": (lambda: b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "HEIC, which is not read here"),
    "pfm": (lambda: b"Pf\n4 4\n-1.0\n" + bytes(64), "floating-point"),
    "32 bits": (lambda: encoded(Image.new("I", (4, 4), 70_000), "tiff"), "32-bit numbers"),
    "animated png": (lambda: encoded(NOISE, "png", save_all=True, append_images=[NOISE.rotate(9)] * 3), PIXELS),
    "animated webp": (lambda: encoded(NOISE, "webp", save_all=True, append_images=[NOISE.rotate(9)] * 3), PIXELS),
    "animated avif": (lambda: encoded(NOISE, "avif", save_all=True, append_images=[NOISE.rotate(9)] * 3), PIXELS),
    **{f"{kind} cut off": (lambda kind=kind: encoded(NOISE, kind)[:-300], "truncated|damaged") for kind in KINDS},
}  # fmt: skip

# A process of its own, so that the peak of its memory is that of one file.
PROGRAM = """
import json, pathlib, re, sys, time
from tfpar.prepare import pictures
pictures.load(sys.argv[1], (224, 224))
for path in sys.argv[2:]:
    started = time.perf_counter()
    try:
        said = pictures.PIXELS if pictures.load(path, (224, 224)).shape == (224, 224, 3) else "another shape"
    except pictures.BadPicture as reason:
        said = str(reason)
    status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss begins with what the process that started this one held
    peak = int(re.search("VmHWM: *(.+) kB", status)[1]) * 1024
    print(json.dumps([said, time.perf_counter() - started, peak]))
""".replace("pictures.PIXELS", repr(PIXELS))


def measured(paths, ordinary):
    """Return (pixels or reason, seconds, peak of the memory so far) for each file, read by another process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ordinary, *paths], capture_output=True, text=True, timeout=SECONDS * (1 + len(paths))
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory):
    path = tmp_path_factory.mktemp("ordinary") / "picture.png"
    NOISE.save(path)
    return path


@pytest.mark.parametrize("name", ODD)
def test_odd_files_stay_within_the_bounds(name, ordinary, tmp_path):
    make, expected = ODD[name]
    path = tmp_path / "odd.jpg"  # the suffix does not matter
    path.write_bytes(make())
    [(said, seconds, peak)] = measured([path], ordinary)
    assert re.search(expected, said), said
    assert peak < MEMORY and seconds < SECONDS


def test_the_collected_odd_files_stay_within_the_bounds(shared, ordinary):
    paths = sorted(path for path in (shared / "odd_images").iterdir() if path.suffix != ".tsv")
    results = measured(paths, ordinary)
    assert len(results) >= 42
    for path, (_, seconds, peak) in zip(paths, results, strict=True):
        assert peak < MEMORY and seconds < SECONDS, path.name


def test_a_huge_file_is_not_read(tmp_path, ordinary):
    path = tmp_path / "zeros.jpg"
    with open(path, "wb") as file:
        file.truncate(20_000_000_000)  # without a byte on the disk
    [(said, _, peak)] = measured([path], ordinary)
    assert said == "20,000,000,000 bytes, the limit is 400,000,000" and peak < MEMORY


def test_pipes_sockets_and_devices_do_not_hang(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        for name in ("pipe.jpg", "device.jpg", "socket.jpg"):
            with pytest.raises(pictures.BadPicture, match="not a regular file"):
                pictures.load(name, (8, 8))
    monkeypatch.setattr(pictures.Path, "is_file", lambda _path: True)  # as if it had been one a moment ago
    with pytest.raises(pictures.BadPicture, match="not a regular file"):
        pictures.load("pipe.jpg", (8, 8))


def test_one_large_picture_at_a_time(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 100)
    inside, most, decoded = [], [], pictures._decoded
    gate = threading.Barrier(3)

    def watched(image):
        inside.append(image)
        most.append(len(inside))
        threading.Event().wait(0.05)
        inside.remove(image)
        return decoded(image)

    monkeypatch.setattr(pictures, "_decoded", watched)
    content = encoded(NOISE, "bmp")
    threads = [threading.Thread(target=lambda: gate.wait() + pictures.load(content, (8, 8)).size) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_every_format_that_has_one(kind, orientation):
    corner = Image.new("RGB", (64, 32), "black")
    corner.paste("white", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(corner, kind, exif=exif)
    height, width = pictures.size(content)
    assert (height, width) == ((32, 64) if orientation < 5 else (64, 32))
    bright = pictures.load(content, (height, width))[:, :, 0] > 128
    lit = [bool(bright[r, c]) for r in (height // 4, 3 * height // 4) for c in (width // 4, 3 * width // 4)]
    place = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    assert lit == [i == place for i in range(4)]


RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize(
    "content",
    [
        b"P6 64 48 65535\n" + (RAMP * 257).repeat(3).astype(">u2").tobytes(),
        encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "png"),
        encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "tiff"),
        encoded(Image.fromarray(RAMP.astype(np.uint8)).convert("CMYK"), "tiff"),
        encoded(Image.fromarray(RAMP.astype(np.uint8)).convert("CMYK"), "jpeg", quality=95),
        encoded(Image.fromarray(RAMP.astype(np.uint8)).convert("YCbCr"), "tiff"),
        encoded(Image.fromarray(RAMP.astype(np.uint8)).convert("LAB"), "tiff"),
        b"P5 64 48 65535\n" + (RAMP * 257).astype(">u2").tobytes(),
        b"P5 64 48 1000\n" + (RAMP * 1000 / 255).round().astype(">u2").tobytes(),
    ],
    ids=["ppm 16", "png 16", "tiff 16", "cmyk tiff", "cmyk jpeg", "ycbcr", "lab", "pgm 16", "pgm 1000"],
)
def test_deep_and_printed_pictures_look_like_the_plain_one(content):
    plain = pictures.load(encoded(Image.fromarray(RAMP.astype(np.uint8)), "png"), (48, 64)).astype(int)
    assert np.abs(pictures.load(content, (48, 64)).astype(int) - plain).max() <= 3


def test_a_dark_picture_of_16_bits_stays_dark():
    dark = Image.fromarray(np.full((9, 9), 200, np.uint16))
    for kind in ("png", "tiff"):
        assert pictures.load(encoded(dark, kind), (9, 9)).max() == 0


def test_twelve_bits():
    values = np.full((4, 4), 0x800, np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    assert set(pictures.load(tiff(4, 4, bits=12, pixels=packed), (4, 4)).ravel().tolist()) == {128}


def test_a_transparent_value_of_16_bits_becomes_white():
    content = png(2, 1, (b"tRNS", struct.pack(">H", 0x4000)), bits=16, color=0, rows=struct.pack(">HH", 0x4000, 0x4100))
    assert pictures.load(content, (1, 2))[0, :, 0].tolist() == [255, 0x41]


def test_bands_change_nothing(monkeypatch):
    content = encoded(NOISE.convert("RGBA").rotate(20), "png")
    whole = pictures.load(content, (48, 64))
    monkeypatch.setattr(pictures, "_BAND", 200)
    assert np.array_equal(pictures.load(content, (48, 64)), whole)


def test_a_folder_of_all_of_them_adds_up(tmp_path):
    """Every file is an example or a line; what cannot even be opened does not stop the others."""
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(20):
            NOISE.save(tmp_path / "photos" / kind / f"{i}.png")
    written = [
        name for name in ODD if name.endswith("cut off") or name in ("svg", "eps", "heic", "bmp", "gif", "ppm", "tiff")
    ]
    for name in written:
        (tmp_path / "photos" / "cat" / f"{name}.jpg").write_bytes(ODD[name][0]())
    os.mkfifo(tmp_path / "photos" / "dog" / "pipe.png")
    data = prepare.dataset(tmp_path / "photos", tmp_path / "d", image_size=16)
    lines = (data.directory / "skipped.csv").read_text().splitlines()[1:]
    assert len(data.train.labels) + len(data.validation.labels) == 40
    assert len(lines) == len(written) + 1 == json.loads((data.directory / "dataset.json").read_text())["skipped"]
