import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)  # fmt: skip

from tests.data.classification.place import config, table  # noqa: E402
from visionpeft.data.classification import open_pictures  # noqa: E402
from visionpeft.data.classification.formats import dicom  # noqa: E402
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig  # noqa: E402
from visionpeft.errors import DataError, MissingExtraError  # noqa: E402

VOLUMES = VolumeConfig()
STORED = (np.arange(20 * 24).reshape(20, 24) * 8).astype(np.uint16)  # 0 to 3832


def write(path, stored=STORED, syntax=ExplicitVRLittleEndian, **header):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = stored.shape[-1] == 3
    frames = stored.ndim - 2 - colour
    dataset.Rows, dataset.Columns = stored.shape[frames : frames + 2]
    if frames:
        dataset.NumberOfFrames = len(stored)
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if syntax != JPEGLSLossless:
        dataset.PixelData = stored.tobytes()
    for name, value in header.items():
        setattr(dataset, name, value)
    if syntax == RLELossless:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(RLELossless)
    if syntax == JPEGLSLossless:
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7" + bytes(60)])
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


def grey(path, number=0, **intensity):
    values = np.asarray(dicom.read(path, number, IntensityConfig(**intensity), VOLUMES))
    assert (values == values[..., :1]).all()
    return values[..., 0]


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1, for an output from 0 to 255."""
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.clip(np.where(values <= center - 0.5 - (width - 1) / 2, 0, shown), 0, 255)


def test_the_files_own_window_by_the_standards_formula(tmp_path):
    path = write(
        tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 300], WindowWidth=[400, 1500]
    )
    assert np.abs(grey(path) - linear(STORED * 2.0 - 1024, 40, 400)).max() <= 0.5
    assert np.array_equal(grey(path, window="file"), grey(path))


@pytest.mark.parametrize("width", [41, 1500])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_forms_of_windows_against_pydicom(tmp_path, function, width):
    path = write(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=width, VOILUTFunction=function)
    wanted = pydicom.pixels.apply_voi_lut(STORED, pydicom.dcmread(path)) / 65535 * 255
    assert np.abs(grey(path) - wanted).max() <= 0.51


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    header = {"WindowCenter": 2000, "WindowWidth": 1000}
    plain = grey(write(tmp_path / "2.dcm", **header)).astype(int)
    turned = grey(write(tmp_path / "1.dcm", PhotometricInterpretation="MONOCHROME1", **header)).astype(int)
    assert plain.min() == 0
    assert np.abs(255 - plain - turned).max() <= 1  # the halves between two levels are rounded
    assert turned[0, 0] == 255


def test_a_window_of_the_settings_wins(tmp_path):
    path = write(tmp_path / "a.dcm", WindowCenter=1, WindowWidth=2, RescaleSlope=1, RescaleIntercept=-100)
    got = grey(path, window="fixed", center=1000, width=800)
    assert np.abs(got - np.clip((STORED - 100.0 - 600) / 800, 0, 1) * 255).max() <= 0.5


def test_percentiles_and_full(tmp_path):
    path = write(tmp_path / "a.dcm", BitsStored=12, HighBit=11, RescaleSlope=-1, RescaleIntercept=10)
    values = 10.0 - STORED
    low, high = np.percentile(values, (5, 90))
    got = grey(path, window="percentile", percentiles=(5, 90))
    assert np.abs(got - np.clip((values - low) / (high - low), 0, 1) * 255).max() <= 0.5
    least, most = 10 - 4095, 10
    assert np.abs(grey(path, window="full") - (values - least) / (most - least) * 255).max() <= 0.5
    assert np.array_equal(grey(path, window="auto"), grey(path, window="percentile")), "without a window of its own"
    with pytest.raises(DataError, match="has no window of its own"):
        grey(path, window="file")


def test_signed_values(tmp_path):
    stored = (STORED.astype(np.int32) - 2000).astype(np.int16)
    path = write(tmp_path / "a.dcm", stored, WindowCenter=0, WindowWidth=2001)
    assert np.abs(grey(path) - linear(stored.astype(float), 0, 2001)).max() <= 0.5


def test_tables_of_values(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 16]
    lut.LUTData = (np.arange(4096) ** 2 // 256).astype(np.uint16).tobytes()
    path = write(tmp_path / "a.dcm", VOILUTSequence=Sequence([lut]))
    assert np.abs(grey(path) - (STORED.astype(float) ** 2 // 256) / 65535 * 255).max() <= 0.5
    lut.ModalityLUTType = "US"
    path = write(tmp_path / "b.dcm", ModalityLUTSequence=Sequence([lut]))
    assert np.abs(grey(path, window="full") - (STORED.astype(float) ** 2 // 256) / 65535 * 255).max() <= 0.5


def test_frames_have_their_own_window_and_slope(tmp_path):
    stored = np.stack([STORED, STORED[::-1], STORED // 2])

    def group(slope, center):
        window, value, both = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 1000
        value.RescaleSlope, value.RescaleIntercept = slope, 5
        both.FrameVOILUTSequence, both.PixelValueTransformationSequence = Sequence([window]), Sequence([value])
        return both

    shared = group(7, 7)
    del shared.PixelValueTransformationSequence
    frames = [group(1, 500), group(2, 900), group(3, 100)]
    del frames[2].FrameVOILUTSequence
    path = write(
        tmp_path / "a.dcm", stored, PerFrameFunctionalGroupsSequence=Sequence(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )  # fmt: skip
    assert dicom.count(path, VOLUMES) == 3
    for number, (slope, center) in enumerate([(1, 500), (2, 900), (3, 7)]):
        wanted = linear(stored[number].astype(float) * slope + 5, center, 1000)
        assert np.abs(grey(path, number) - wanted).max() <= 0.5
    with pytest.raises(DataError, match="has 3 frames, there is no number 3"):
        grey(path, 3)


def test_colours_and_palettes(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = write(tmp_path / "rgb.dcm", values)
    assert np.array_equal(np.asarray(dicom.read(path, 0, IntensityConfig(), VOLUMES)), values)
    from pydicom.pixels.processing import convert_color_space

    ybr = convert_color_space(values, "RGB", "YBR_FULL")
    path = write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    got = np.asarray(dicom.read(path, 0, IntensityConfig(), VOLUMES), int)
    assert np.abs(got - values).max() <= 3
    index = (STORED // 16).astype(np.uint8)
    red = (np.arange(256) * 257).astype(np.uint16)
    palette = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    data = {"Red": red, "Green": red[::-1], "Blue": red // 2}
    palette |= {f"{name}PaletteColorLookupTableData": table.tobytes() for name, table in data.items()}
    path = write(tmp_path / "palette.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette)
    got = np.asarray(dicom.read(path, 0, IntensityConfig(), VOLUMES), int)
    assert np.abs(got - np.stack([index, 255 - index.astype(int), index / 2], axis=-1)).max() <= 1


def test_compressed_files(tmp_path):
    header = {"WindowCenter": 2000, "WindowWidth": 1000}
    plain, packed = write(tmp_path / "a.dcm", **header), write(tmp_path / "b.dcm", syntax=RLELossless, **header)
    assert packed.stat().st_size != plain.stat().st_size
    assert np.array_equal(grey(plain), grey(packed))
    with pytest.raises(DataError, match=r"compressed as JPEG-LS Lossless.*pip install pylibjpeg"):
        dicom.count(write(tmp_path / "c.dcm", syntax=JPEGLSLossless), VOLUMES)
    with pytest.raises(DataError, match=r"deflated DICOM file: write it anew with dcmconv"):
        dicom.count(write(tmp_path / "d.dcm", syntax=DeflatedExplicitVRLittleEndian), VOLUMES)


def test_jpeg_inside_is_decoded(tmp_path):
    import io

    smooth = np.asarray(Image.fromarray((STORED // 16).astype(np.uint8)))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    path = write(tmp_path / "a.dcm", smooth)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([buffer.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert np.abs(grey(path, window="full").astype(int) - smooth).max() <= 8


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "too large"),
        ({"Rows": 4}, "too small"),
        ({"NumberOfFrames": 10**9}, "1,000,000,000 frames"),
        ({"NumberOfFrames": 40}, "damaged or cut short"),
        ({"PhotometricInterpretation": "STARLIGHT"}, "unknown kind STARLIGHT"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "window is 0 wide"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "unknown form CUBIC"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_headers_that_lie(tmp_path, header, message):
    path = write(tmp_path / "a.dcm", **header)
    with pytest.raises(DataError, match=message) as error:
        dicom.read(path, 0, IntensityConfig(), VOLUMES)
    assert str(path) in str(error.value)


def test_what_is_no_dicom_picture(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a\.dcm is not a DICOM file"):
        dicom.count(tmp_path / "a.dcm", VOLUMES)
    path = write(tmp_path / "cut.dcm")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="damaged or cut short"):
        dicom.read(path, 0, IntensityConfig(), VOLUMES)
    dataset = pydicom.dcmread(write(tmp_path / "report.dcm"))
    del dataset.PixelData, dataset.Rows
    dataset.save_as(tmp_path / "report.dcm")
    with pytest.raises(DataError, match="holds no picture"):
        dicom.count(tmp_path / "report.dcm", VOLUMES)


def test_class_folders_of_dicom(tmp_path, monkeypatch):
    """Files are known by their mark too; frames become pictures; the patient is the file's own."""
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
    write(tmp_path / "benign" / "IM0001", PatientID="P1")
    write(tmp_path / "benign" / "b.dcm", np.stack([STORED] * 3), PatientID="P2")
    write(tmp_path / "malignant" / "c.dcm", PatientID="")
    pictures = open_pictures(config("folder", tmp_path))
    found = [(example.name, example.patient) for example in pictures.examples]
    frames = [(f"benign/b.dcm#{number}", "P2") for number in range(3)]
    assert found == [("benign/IM0001", "P1"), *frames, ("malignant/c.dcm", None)]
    assert pictures.image(1).size == (24, 20)
    pictures = open_pictures(config("folder", tmp_path, volumes={"take": [2, 0]}, on_bad="skip"))
    assert [e.name for e in pictures.examples if "#" in e.name] == ["benign/b.dcm#2", "benign/b.dcm#0"]
    middle = open_pictures(config("folder", tmp_path, volumes={"take": "middle"}))
    assert "benign/b.dcm#1" in [example.name for example in middle.examples]
    rows = [{"path": "benign/b.dcm#2", "label": "x"}, {"path": "benign/b.dcm#3", "label": "y"}]
    with pytest.raises(DataError, match=r"line 3: .*b\.dcm holds 3 pictures, there is no number 3"):
        open_pictures(config("table", table(tmp_path / "t.csv", rows)))
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"visionpeft\[medical\]"):
        open_pictures(config("folder", tmp_path))
