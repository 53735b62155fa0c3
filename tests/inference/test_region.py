import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from visionpeft.errors import ConfigError, DataError, FileFormatError
from visionpeft.inference.region import Region, divided, read_region, region_from_text, region_of


def picture():
    values = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    return values, Image.fromarray(values)


def huge_png(width, height):
    """A PNG that says it is huge, and holds nothing."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_mask_goes_through_a_file_and_through_text(tmp_path):
    values, grey = picture()
    grey.save(tmp_path / "mask.png")
    region = read_region(tmp_path / "mask.png")
    assert region == region_of(grey.convert("RGB")) == Region(7, 5, values.tobytes())
    assert region_from_text(region.text()) == region


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"", huge_png(9000, 10), huge_png(60000, 60000)])
def test_what_is_no_mask_is_told_by_its_name(tmp_path, content):
    (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(DataError, match=r"mask\.png"):
        read_region(tmp_path / "mask.png")


def test_a_missing_file_and_a_damaged_text(tmp_path):
    with pytest.raises(DataError, match="nothing"):
        read_region(tmp_path / "nothing.png")
    with pytest.raises(FileFormatError, match="damaged"):
        region_from_text("!")


def test_nine_masks_are_too_many():
    names = [str(number) for number in range(9)]
    with pytest.raises(ConfigError, match="at most 8"):
        divided(names, dict.fromkeys(names, Region(2, 2, bytes(4))), (2, 2))
