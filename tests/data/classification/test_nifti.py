import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")

from tests.data.classification.place import config, table  # noqa: E402
from visionpeft.data.classification import open_pictures  # noqa: E402
from visionpeft.data.classification.formats import nifti  # noqa: E402
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig  # noqa: E402
from visionpeft.errors import DataError, MissingExtraError  # noqa: E402

VALUES = np.random.default_rng(0).integers(-1000, 2000, (20, 22, 18)).astype(np.int16)  # right, front, head
FULL = IntensityConfig(window="full")


def write(path, values=VALUES, affine=None, slope=None):
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    if slope:
        image.header.set_slope_inter(*slope)
    image.to_filename(path)
    return path


def grey(path, number, axis="axial", intensity=FULL):
    return np.asarray(nifti.read(path, number, intensity, VolumeConfig(axis=axis)))[..., 0].astype(int)


def test_axes_as_a_radiologist_sees_them(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    low, high = int(VALUES.min()), int(VALUES.max())

    def wanted(rows):
        return (np.array(rows, float) - low) / (high - low) * 255

    axial = [[VALUES[x, y, 5] for x in range(19, -1, -1)] for y in range(21, -1, -1)]
    coronal = [[VALUES[x, 5, z] for x in range(19, -1, -1)] for z in range(17, -1, -1)]
    sagittal = [[VALUES[5, y, z] for y in range(21, -1, -1)] for z in range(17, -1, -1)]
    for axis, rows in (("axial", axial), ("coronal", coronal), ("sagittal", sagittal)):
        assert np.abs(grey(path, 5, axis) - wanted(rows)).max() <= 0.5
    counts = [nifti.count(path, VolumeConfig(axis=axis)) for axis in ("sagittal", "coronal", "axial")]
    assert counts == [20, 22, 18]


def test_a_volume_stored_in_another_orientation_gives_the_same_pictures(tmp_path):
    plain = write(tmp_path / "a.nii")
    # stored as head-to-foot, left-right mirrored, front: what the affine says is undone
    stored = np.ascontiguousarray(np.transpose(VALUES, (2, 0, 1))[::-1, ::-1])
    affine = np.array([[0, -1, 0, 19], [0, 0, 1, 0], [-1, 0, 0, 17], [0, 0, 0, 1]], float)
    turned = write(tmp_path / "b.nii", stored, affine)
    for axis in ("sagittal", "coronal", "axial"):
        assert nifti.count(plain, VolumeConfig(axis=axis)) == nifti.count(turned, VolumeConfig(axis=axis))
        assert np.array_equal(grey(plain, 7, axis), grey(turned, 7, axis))


def test_slope_and_windows_are_of_the_whole_volume(tmp_path):
    path = write(tmp_path / "a.nii.gz", slope=(2.0, 100.0))
    image = nibabel.load(path)
    real = np.asarray(image.dataobj, dtype=np.float32)
    assert not np.array_equal(real, VALUES)
    cut = real[::-1, ::-1, 3].T.astype(float)
    got = grey(path, 3, intensity=IntensityConfig(window="fixed", center=500, width=1000))
    assert np.abs(got - np.clip(cut / 1000, 0, 1) * 255).max() <= 0.5
    low, high = np.percentile(real, (10, 80))
    got = grey(path, 3, intensity=IntensityConfig(window="percentile", percentiles=(10, 80)))
    assert np.abs(got - np.clip((cut - low) / (high - low), 0, 1) * 255).max() <= 0.51
    auto = grey(path, 3, intensity=IntensityConfig())
    assert np.array_equal(auto, grey(path, 3, intensity=IntensityConfig(window="percentile")))
    with pytest.raises(DataError, match="has no window of its own"):
        grey(path, 3, intensity=IntensityConfig(window="file"))


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    path = write(tmp_path / "a.nii")
    before = grey(path, 2)
    write(path, VALUES[:, :, ::-1].copy())
    import os

    os.utime(path, ns=(1, 1))
    assert np.array_equal(grey(path, 15), before)


def test_volumes_in_a_table(tmp_path):
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii.gz")
    rows = [{"path": "a.nii.gz", "label": "x", "who": "1"}, {"path": "b.nii.gz#12", "label": "y", "who": "2"}]
    path = table(tmp_path / "t.csv", rows)
    pictures = open_pictures(config("table", path, source={"patient": "who"}, volumes={"every": 5}))
    assert [example.name for example in pictures.examples] == [
        *(f"a.nii.gz#{n}" for n in (0, 5, 10, 15)),
        "b.nii.gz#12",
    ]
    assert [example.patient for example in pictures.examples] == ["1"] * 4 + ["2"]
    assert pictures.targets().tolist() == [0] * 4 + [1]
    assert np.array_equal(
        np.asarray(pictures.image(4)),
        np.asarray(nifti.read(tmp_path / "b.nii.gz", 12, IntensityConfig(), VolumeConfig())),
    )
    with pytest.raises(DataError, match=r"line 2: .*a\.nii\.gz holds 18 pictures, there is no number 18"):
        open_pictures(config("table", path, volumes={"take": [18]}))


@pytest.mark.parametrize(
    ("values", "affine", "message"),
    [
        (np.zeros((20, 20, 20, 2), np.int16), None, r"has the shape \[20, 20, 20, 2\]"),
        (np.zeros((20, 20), np.int16), None, r"has the shape \[20, 20\]"),
        (np.full((20, 20, 20), np.nan, np.float32), None, "no numbers"),
        (np.zeros((20, 20, 20), np.complex64), None, "holds colours, and one value a voxel is needed"),
        (np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")]), None, "one value a voxel is needed"),
        (np.zeros((4, 20, 20), np.int16), None, "too small"),
    ],
)  # fmt: skip
def test_volumes_that_are_none(tmp_path, values, affine, message):
    path = write(tmp_path / "a.nii", values, affine)
    with pytest.raises(DataError, match=message) as error:
        nifti.read(path, 0, IntensityConfig(), VolumeConfig())
    assert str(path) in str(error.value)


def test_hostile_files(tmp_path):
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[42:50] = np.array([30000, 30000, 30000, 1], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"too large: 27,000,000,000,000 voxels"):
        nifti.count(tmp_path / "huge.nii", VolumeConfig())
    (tmp_path / "cut.nii").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="damaged or cut short"):
        nifti.read(tmp_path / "cut.nii", 0, FULL, VolumeConfig())
    for name in ("text.nii", "text.nii.gz"):
        (tmp_path / name).write_bytes(b"hello" * 200)
        with pytest.raises(DataError, match="is not a NIfTI volume"):
            nifti.count(tmp_path / name, VolumeConfig())
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([0, 2], "<i2").tobytes()  # by the sform alone, …
    content[280:328] = np.full(12, np.nan, "<f4").tobytes()  # … which is none
    (tmp_path / "nowhere.nii").write_bytes(content)
    with pytest.raises(DataError, match="does not say how it lies in the patient"):
        nifti.count(tmp_path / "nowhere.nii", VolumeConfig())


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"visionpeft\[medical\]"):
        nifti.count(path, VolumeConfig())
