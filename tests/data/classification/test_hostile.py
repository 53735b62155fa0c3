"""Files with bytes changed, put in and cut off: a picture or one clear line, never a crash."""

import random

import numpy as np
import pytest

from tests.data.classification import test_medmnist
from tests.data.classification.place import config
from visionpeft.data.classification import open_pictures
from visionpeft.data.classification.formats import dicom, nifti
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig
from visionpeft.errors import DataError

VOLUMES = VolumeConfig()


def damaged(content, head, chance):
    """The content with one to eight faults, most of them in its first ``head`` bytes."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        kind, place = chance.random(), chance.randrange(min(head, len(found)))
        if kind < 0.7:
            found[place] = chance.choice((0, 255, chance.randrange(256)))
        elif kind < 0.85:
            found = found[: chance.randrange(len(found))] or bytearray(b"x")
        else:
            found[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(5)))
    return bytes(found)


def read_dicom(path):
    dicom.count(path, VOLUMES)
    dicom.patient(path)
    dicom.read(path, 0, IntensityConfig(), VOLUMES)


def read_nifti(path):
    nifti.count(path, VOLUMES)
    nifti.read(path, 0, IntensityConfig(), VOLUMES)


def read_medmnist(path):
    open_pictures(config("medmnist", path))


def whole_dicom(path):
    from tests.data.classification.test_dicom import write

    return write(path, RescaleSlope=2, RescaleIntercept=1, WindowCenter=5, WindowWidth=100)


def whole_nifti(path):
    from tests.data.classification.test_nifti import write

    return write(path)


def whole_medmnist(path):
    values = test_medmnist.arrays(lambda count: np.arange(count)[:, None] % 2)
    return test_medmnist.save(path, **values)


def refusal(read, path):
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "package", "write", "read", "head"),
    [
        ("a.dcm", "pydicom", whole_dicom, read_dicom, 900),
        ("a.nii", "nibabel", whole_nifti, read_nifti, 352),
        ("a.nii.gz", "nibabel", whole_nifti, read_nifti, 500),
        ("a.npz", "numpy", whole_medmnist, read_medmnist, 10**9),
    ],
)
def test_a_damaged_file_is_a_picture_or_a_clear_line(tmp_path, name, package, write, read, head):
    pytest.importorskip(package)
    whole = write(tmp_path / name).read_bytes()
    read(tmp_path / name)
    refused = 0
    for seed in range(120):
        path = tmp_path / f"{seed}_{name}"
        path.write_bytes(damaged(whole, head, random.Random(seed)))
        line = refusal(read, path)
        assert line is None or (str(path) in line and "\n" not in line)
        refused += line is not None
        path.unlink()
    assert refused > 20
