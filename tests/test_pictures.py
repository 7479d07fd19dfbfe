"""data/pictures.py: a picture as people see it, from a file, a table's cell or `predict`, and what is none."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from piat_hub import data
from piat_hub.config import InputError

LEVELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
GREY = LEVELS[..., 0]


def encoded(image, kind="PNG", **save):
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


def seen(image, kind="PNG", **save):
    """The picture's levels, as they come back."""
    return np.asarray(data.open_picture(encoded(image, kind, **save), "it"))


def ramp(dtype):
    return (np.arange(20).reshape(5, 4) * (65535 // 19)).astype(dtype)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_divided_by_257(kind):
    """255 * 257 = 65535: white stays white, and levels between are rounded."""
    image = Image.fromarray(ramp(np.uint16))
    found = seen(image, kind)
    assert found.dtype == np.uint8 and np.array_equal(found, np.rint(ramp(np.float64) / 257))
    assert found.min() == 0 and found.max() == 255


def test_big_endian_tiffs_have_the_same_levels():
    header = struct.pack(">2sHI", b"MM", 42, 8)
    tags = [(256, 4), (257, 5), (258, 16), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 5), (279, 40)]
    body = struct.pack(">H", 9) + b"".join(struct.pack(">HHIHH", t, 3, 1, v, 0) for t, v in tags) + struct.pack(">I", 0)
    raw = header + body + ramp(np.uint16).astype(">u2").tobytes()
    assert np.array_equal(np.asarray(data.open_picture(raw, "it")), np.rint(ramp(np.float64) / 257))


@pytest.mark.parametrize(
    ("bits", "zero", "words"), [(12, 1, "levels of 12 bits in 16"), (16, 0, "levels where 0 is white")]
)
def test_levels_of_another_depth_or_upside_down_are_refused(bits, zero, words):
    """Pillow hands 12 bits on as they are, which would be an almost black picture, and 16 without turning them."""
    body = ramp(np.uint16).tobytes() if bits == 16 else bytes(30)
    tags = [(256, 4), (257, 5), (258, bits), (259, 1), (262, zero), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 5)]
    entries = b"".join(struct.pack("<HHIHH", t, 3, 1, v, 0) for t, v in (*tags, (279, len(body))))
    raw = struct.pack("<2sHIH", b"II", 42, 8, 9) + entries + struct.pack("<I", 0) + body
    with pytest.raises(InputError, match=f"it is no image .{words}, which Pillow does not scale"):
        data.open_picture(raw, "it")


def test_a_picture_too_narrow_for_its_middle_is_refused_before_it_is_enlarged():
    narrow, fit = Image.new("L", (5000, 1)), data.Fit((224, 224), "center", 0.875)
    with pytest.raises(
        InputError, match="a picture of 5000 x 1 pixels is too narrow to be cut to 224 x 224; crop it before"
    ):
        fit(narrow)
    assert fit(Image.new("L", (500, 5))).shape == (1, 224, 224)
    assert data.Fit((8, 8))(narrow).shape == (1, 8, 8)  # squeezed, it is no larger on its way
    for mode in ("center", "squash", "border"):  # a stranger's config.json
        with pytest.raises(
            InputError, match="crop_pct 0.0001 has 6e.09 pixels cut to .8, 8.; give a larger --crop-pct"
        ):
            data.Fit((8, 8), mode, 1e-4)(Image.new("L", (8, 9)))


def test_a_border_has_the_models_mean():
    cfg = {"input_size": [3, 8, 8], "mean": [0.5, 0.25, 1.0], "crop_mode": "border", "crop_pct": 1.0}
    found = data.Fit.of_timm(cfg)(Image.new("RGB", (16, 4)))
    assert found[:, 0, 0].tolist() == [128, 64, 255] and found[:, 4, 4].tolist() == [0, 0, 0]
    grey = data.Fit.of_timm(cfg)(Image.new("L", (16, 4)))
    assert grey[0, 0, 0] == round(255 * 1.75 / 3) and grey[0, 4, 4] == 0


def test_floats_in_the_unit_interval_are_scaled():
    share = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
    assert np.array_equal(seen(Image.fromarray(share), "TIFF"), np.rint(share * 255))


@pytest.mark.parametrize(
    ("levels", "range_"),
    [
        (np.float32(255) * np.ones((5, 4), np.float32), "levels of 255 to 255"),
        (np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4), "levels of -1 to 1"),
        (np.full((5, 4), np.nan, np.float32), "levels of nan to nan"),
        (np.arange(20, dtype=np.int32).reshape(5, 4), "levels of 0 to 19"),
    ],
)
def test_levels_without_a_known_range_are_refused(levels, range_):
    with pytest.raises(
        InputError, match=f"it is no image .{range_}, where 8 or 16 bits or floats in .0, 1. would tell"
    ):
        seen(Image.fromarray(levels), "TIFF")


def test_what_is_transparent_stands_on_white():
    clear = np.dstack([LEVELS, np.zeros((5, 4), np.uint8)])
    assert (seen(Image.fromarray(clear)) == 255).all()
    solid = np.dstack([LEVELS, np.full((5, 4), 255, np.uint8)])
    assert np.array_equal(seen(Image.fromarray(solid)), LEVELS)  # nothing of an opaque one changes
    half = np.dstack([np.zeros((5, 4, 3), np.uint8), np.full((5, 4), 128, np.uint8)])
    assert abs(seen(Image.fromarray(half)).astype(int) - 127).max() <= 1
    grey = seen(
        Image.fromarray(
            np.dstack([GREY, np.where(np.arange(4) < 2, 0, 255) + GREY * 0])[..., :2].astype(np.uint8), "LA"
        )
    )
    assert grey.shape == (5, 4) and (grey[:, :2] == 255).all() and np.array_equal(grey[:, 2:], GREY[:, 2:])


def test_a_transparent_colour_of_a_palette_or_of_rgb_stands_on_white():
    palette = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4), "P")
    palette.putpalette([k for level in range(256) for k in (level, 0, 0)])
    found = seen(palette, transparency=7)
    assert tuple(found[1, 3]) == (255, 255, 255) and tuple(found[1, 2]) == (6, 0, 0)
    rgb = np.zeros((5, 4, 3), np.uint8)
    rgb[0, 0] = 9, 9, 9
    found = seen(Image.fromarray(rgb), transparency=(0, 0, 0))
    assert tuple(found[0, 0]) == (9, 9, 9) and (found.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("CMYK", 3), ("YCbCr", 3), ("RGB", 3)])
def test_every_mode_is_grey_or_rgb(mode, channels):
    image = Image.fromarray(LEVELS).convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    found, expected = seen(image, kind), image.convert("L" if channels == 1 else "RGB")
    assert found.ndim == (2 if channels == 1 else 3)
    assert kind == "JPEG" or np.array_equal(found, np.asarray(expected))


UPRIGHT = {1: LEVELS, 2: LEVELS[:, ::-1], 3: LEVELS[::-1, ::-1], 4: LEVELS[::-1], 5: LEVELS.transpose(1, 0, 2)}
UPRIGHT |= {6: np.rot90(LEVELS, -1), 7: LEVELS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(LEVELS)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_obeyed(orientation, kind):
    """The eight by their definition in EXIF: where the picture's first row and column are to be seen."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = seen(Image.fromarray(LEVELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(found, UPRIGHT[orientation])


def test_one_reader_for_tables_files_and_predict(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for k in range(2):
            (tmp_path / "d" / split / f"{k}").mkdir(parents=True)
            Image.fromarray(LEVELS).save(tmp_path / "d" / split / f"{k}/0.png", exif=exif)
    upright = torch.from_numpy(np.rot90(LEVELS, -1).copy()).permute(2, 0, 1)
    for limit in (4.0, 0.0):  # decoded, and streamed
        for split in ("train", "test"):
            assert torch.equal(data.load(str(tmp_path / "d"), split, limit=limit).images[:][0], upright)
    assert torch.equal(data.read_image(tmp_path / "d/test/0/0.png", (3, 4, 5)), upright)


def test_broken_exif_turns_nothing():
    for exif in (b"Exif\0\0garbage!!", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"):
        image = Image.fromarray(np.full((8, 6, 3), 90, np.uint8))
        assert seen(image, "JPEG", exif=exif).shape == (8, 6, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_in_one_file_are_refused(kind):
    frames = [Image.fromarray(np.full((5, 4, 3), level, np.uint8)) for level in (0, 90, 200)]
    with pytest.raises(InputError, match="it holds several pictures, an animation or pages; save one"):
        seen(frames[0], kind, save_all=True, append_images=frames[1:])
    assert seen(frames[1], kind).shape == (5, 4, 3)


def test_the_picture_of_a_telephones_jpeg_is_its_first():
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (90, 200)]
    assert abs(seen(frames[0], "MPO", save_all=True, append_images=frames[1:]).astype(int) - 90).max() < 3


def png(*chunks):
    """A PNG file of these (name, content)."""
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width, height):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


BROKEN = {
    "text": (b"no picture", "its format is none of BMP, GIF, JPEG"),
    "nothing": (b"", "its format is none of BMP, GIF, JPEG"),
    "cut": (encoded(Image.fromarray(LEVELS.repeat(9, 0)), "JPEG")[:-60], "truncated"),
    "header alone": (png(header(5, 4), (b"IEND", b"")), ""),
    "wrong checksum": (encoded(Image.fromarray(LEVELS))[:40] + b"????" + encoded(Image.fromarray(LEVELS))[44:], ""),
    "huge": (png(header(14_000, 14_000), (b"IDAT", b""), (b"IEND", b"")), "more pixels than Pillow opens, 178,956,970"),
    "exif alone": (b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0\x08\0\0\0\xff\xd9", ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_by_its_path(tmp_path, case):
    raw, reason = BROKEN[case]
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            Image.fromarray(LEVELS).save(tmp_path / "d" / split / name / "fine.png")
    (broken := tmp_path / "d/train/dog/it.png").write_bytes(raw)
    for read in (lambda: data.load(str(tmp_path / "d"), "train"), lambda: data.read_image(broken, (3, 5, 4))):
        with pytest.raises(InputError, match=f"it.png is not an image file .*{reason}") as caught:
            read()
        assert str(broken) in str(caught.value) and "BytesIO" not in str(caught.value) and "\n" not in str(caught.value)


def test_large_pictures_are_read_without_a_word(recwarn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)  # of which Pillow warns, but opens up to twice as many
    assert seen(Image.fromarray(LEVELS)).shape == (5, 4, 3) and not recwarn.list


def test_a_picture_of_one_pixel_and_other_channels(tmp_path):
    Image.fromarray(LEVELS[:1, :1]).save(tmp_path / "one.png")
    assert torch.equal(data.read_image(tmp_path / "one.png", (3, 2, 2))[:, 0, 0], torch.from_numpy(LEVELS[0, 0].copy()))
    with pytest.raises(InputError, match="a model of 4 channels; a picture has 1 or 3"):
        data.read_image(tmp_path / "one.png", (4, 2, 2))
    for absent in ("absent.png", "."):
        with pytest.raises(
            InputError,
            match="there is no file .*absent.png; correct its name|is not an image file .it is no regular file",
        ):
            data.read_image(tmp_path / absent, (3, 2, 2))


@pytest.mark.parametrize("coloured", [0, 1])
def test_one_picture_in_colour_among_many_grey_ones_makes_three_channels(tmp_path, coloured):
    """Wherever it lies, also where pictures stay encoded."""
    for k in range(150):
        folder = tmp_path / "d/train" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        colour = (k, 0, 0) if coloured and k == 77 else k
        Image.new("RGB" if coloured and k == 77 else "L", (8, 8), colour).save(folder / f"{k:03}.png")
    decoded = data.load(str(tmp_path / "d"), "train").images
    encoded = data.load(str(tmp_path / "d"), "train", limit=0).images
    assert encoded.shape == decoded.shape == (150, 1 + 2 * coloured, 8, 8)
    assert torch.equal(encoded[torch.arange(150)], decoded)
