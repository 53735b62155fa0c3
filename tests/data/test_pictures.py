import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from visionpeft.data.pictures import load_folder, picture_paths, read_picture
from visionpeft.errors import DataError
from visionpeft.progress import SilentProgress


class Lines(SilentProgress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def colours(seed=0, height=24, width=32, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_png_is_read_as_it_is(tmp_path):
    wanted = colours()
    assert np.array_equal(read_picture(saved(tmp_path / "a.png", wanted)), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = colours()
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(read_picture(path), upright)


def test_cmyk_is_converted_by_the_closed_form(tmp_path):
    cmyk = colours(channels=4)
    path = tmp_path / "print.tif"
    Image.fromarray(cmyk, "CMYK").save(path)
    ink = cmyk.astype(np.float64) / 255
    wanted = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(np.asarray(read_picture(path), np.float64) - wanted).max() <= 1.0


def test_cmyk_jpeg_keeps_its_polarity(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(path, quality=100)  # no cyan, all magenta and yellow: red
    assert np.abs(np.asarray(read_picture(path), int) - [255, 0, 0]).max() <= 3


def test_palette_and_its_transparency(tmp_path):
    image = Image.new("P", (20, 16), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    image.paste(2, (0, 0, 10, 16))
    image.save(tmp_path / "solid.png")
    image.save(tmp_path / "clear.png", transparency=2)
    solid, clear = (np.asarray(read_picture(tmp_path / name)) for name in ("solid.png", "clear.png"))
    assert solid[0, 0].tolist() == [9, 9, 9]
    assert solid[0, 15].tolist() == [200, 100, 50]
    assert clear[0, 0].tolist() == [255, 255, 255]
    assert clear[0, 15].tolist() == [200, 100, 50]


def test_16_bit_grey_is_divided_by_257(tmp_path):
    values = np.arange(65_536, dtype=np.uint32)[:: 65_536 // (20 * 20)][: 20 * 20].astype(np.uint16).reshape(20, 20)
    for name in ("deep.png", "deep.tif"):
        got = np.asarray(read_picture(saved(tmp_path / name, values)))
        assert np.array_equal(got[..., 0], np.rint(values / 257).astype(np.uint8))
        assert np.array_equal(got[..., 0], got[..., 2])


def test_16_bit_colour_png(tmp_path):
    values = np.random.default_rng(1).integers(0, 65_536, (16, 16, 3)).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    got = np.asarray(read_picture(tmp_path / "deep.png"), float)
    assert np.abs(got - values / 257).max() <= 1.0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white_by_the_closed_form(tmp_path, mode):
    array = colours(channels=len(mode))
    Image.fromarray(array, mode).save(tmp_path / "cut.png")
    inks = array[..., :-1].astype(float) if mode == "RGBA" else array[..., :1].astype(float).repeat(3, -1)
    alpha = array[..., -1:] / 255
    wanted = inks * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(read_picture(tmp_path / "cut.png"), float) - wanted).max() <= 1.0


def test_colour_profile_is_converted(tmp_path):
    """A profile with red and blue primaries exchanged shows whether it is used at all."""
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "same.png", icc_profile=profile)
    swapped = bytearray(profile)
    at = {bytes(swapped[i : i + 4]): i for i in range(132, 132 + 12 * 30, 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    image.save(tmp_path / "swapped.png", icc_profile=bytes(swapped))
    assert np.abs(np.asarray(read_picture(tmp_path / "same.png"), int) - [255, 0, 0]).max() <= 1
    turned = np.asarray(read_picture(tmp_path / "swapped.png"), int)[0, 0]
    assert turned[2] > 200 > turned[0]


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_text_named_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("these are not the pixels\n")
    assert "content is text" in refusal(tmp_path / "a.jpg")


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files(tmp_path, kind, share):
    buffer = io.BytesIO()
    Image.fromarray(colours(height=64, width=64)).save(buffer, kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    refusal(path)


def test_one_pixel(tmp_path):
    assert "1 by 1" in refusal(saved(tmp_path / "dot.png", colours(height=1, width=1)))


def huge_png(path, width, height):
    """A header that announces the size, and no pixels: whoever decodes it finds a damaged file instead."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + crc
    path.write_bytes(start + struct.pack(">I", 1) + b"IDAT")
    return path


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000, 100), (100, 20_000), (16_000, 16_000)])
def test_too_large_is_known_from_the_header(tmp_path, size):
    message = refusal(huge_png(tmp_path / "huge.png", *size))
    assert "too large" in message
    assert "16,384" in message


def test_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="Did you mean 'photos'"):
        picture_paths(tmp_path / "potos")
    with pytest.raises(DataError, match="Did you mean 'photos'"):
        picture_paths(tmp_path / "potos" / "robot")


def test_a_file_instead_of_a_folder(tmp_path):
    with pytest.raises(DataError, match="is a file"):
        picture_paths(saved(tmp_path / "a.png", colours()))


def test_empty_folder_points_to_pictures_inside(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        picture_paths(tmp_path)
    (tmp_path / "10_robot").mkdir()
    saved(tmp_path / "10_robot" / "a.png", colours())
    with pytest.raises(DataError, match="'10_robot' holds 1"):
        picture_paths(tmp_path)


def test_what_is_left_out_is_named_in_one_line(tmp_path):
    saved(tmp_path / "b.PNG", colours())
    saved(tmp_path / "a.jpg", colours())
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "._a.jpg").write_text("x")
    lines = Lines()
    assert [path.name for path in picture_paths(tmp_path, lines)] == ["a.jpg", "b.PNG"]
    assert len(lines.said) == 1
    assert "notes.txt" in lines.said[0]
    assert "DS_Store" not in lines.said[0]


def test_formats_that_need_conversion(tmp_path):
    saved(tmp_path / "a.png", colours())
    (tmp_path / "b.HEIC").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b\.HEIC cannot be read: convert"):
        picture_paths(tmp_path)


def test_duplicates_and_transparency_are_told(tmp_path):
    saved(tmp_path / "a.png", colours())
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    saved(tmp_path / "c.png", colours(1, channels=4))
    lines = Lines()
    assert len(load_folder(tmp_path, lines)) == 3
    assert len(lines.said) == 2
    assert "a.png = b.png" in lines.said[0]
    assert "white: c.png" in lines.said[1]
