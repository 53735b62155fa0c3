"""Amounts of memory, as people write them."""

import pytest

from visionpeft.compute.planning.amounts import bytes_of
from visionpeft.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("8GB", 8 * 1024**3), ("8GiB", 8 * 1024**3), ("8 gb", 8 * 1024**3), ("7.5 GB", 7680 * 1024**2),
        ("8192MiB", 8 * 1024**3), ("6g", 6 * 1024**3), ("8589934592", 8 * 1024**3), (8589934592, 8 * 1024**3),
        (".5T", 512 * 1024**3),
    ],
)  # fmt: skip
def test_what_is_meant(written, meant):
    assert bytes_of(written) == meant


@pytest.mark.parametrize("written", ["", "8 apples", "GB", "-8GB", "8GB8", "1e9GB", "8,5GB"])
def test_what_is_no_amount_is_refused_with_an_example(written):
    with pytest.raises(ConfigError, match="is no amount of memory: write it as 8GB"):
        bytes_of(written)


def test_a_forgotten_unit_is_noticed():
    with pytest.raises(ConfigError, match=r"'8' is less than 64 MiB.*8GB"):
        bytes_of("8")
