"""DICOM: stored values are rescaled to measured ones, and a window makes them grey (PS3.3 C.11.1, C.11.2, C.7.6.3)."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpeft.data.classification.formats.intensity import (
    Ends,
    Values,
    fixed_ends,
    grey_picture,
    linear,
    percentile_ends,
)
from visionpeft.data.classification.settings import IntensityConfig, VolumeConfig
from visionpeft.data.pictures import check_size
from visionpeft.data.reason import reason
from visionpeft.errors import DataError, MissingExtraError

MOST_FRAMES = 100_000
_BROKEN = (
    OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, NotImplementedError, IndexError, RuntimeError,
    OverflowError, struct.error,
)  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")


def count(path: Path, volumes: VolumeConfig) -> int:
    """Return the number of frames; only the header is read.

    Raises:
        DataError: it is no DICOM picture, or too large, or compressed in a way that cannot be decoded here.
        MissingExtraError: pydicom is not installed.
    """
    del volumes
    return _frames(_checked(_header(path, pixels=False), path))


def patient(path: Path) -> str | None:
    """Return the PatientID; None where it is empty.

    Raises:
        DataError: as :func:`count`.
    """
    dataset = _header(path, pixels=False)
    with _told(f"{path} has a damaged PatientID"):
        return str(dataset.get("PatientID") or "").strip() or None


def read(path: Path, number: int, intensity: IntensityConfig, volumes: VolumeConfig) -> Image.Image:
    """Return frame ``number`` (from 0), 8-bit RGB: colours as they are, grey through the window, MONOCHROME1 inverted.

    Raises:
        DataError: there is no such frame, or as :func:`count`.
        MissingExtraError: pydicom is not installed.
    """
    del volumes
    dataset = _checked(_header(path, pixels=True), path)
    if number >= _frames(dataset):
        raise DataError(f"{path} has {_frames(dataset)} frames, there is no number {number}.")
    with _told(f"{path} is damaged or cut short"):
        stored = _stored(dataset, number)
        if stored.ndim == 3:
            return _colours(stored, dataset)
        shares = _shares(stored, dataset, number, intensity, path)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        return grey_picture(1 - shares if inverted else shares)


@contextmanager
def _told(fault: str) -> Generator[None]:
    """Turn what pydicom raises into one line: it reads a header's values only when they are asked for."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        yield
    except (*_BROKEN, BytesLengthException, InvalidDicomError) as error:
        raise DataError(f"{fault}: {reason(error)}. Replace it or take it away.") from error


def _shares(stored: Values, dataset: Any, number: int, intensity: IntensityConfig, path: Path) -> Values:
    """The frame from 0 to 1, through the window of the settings or of the file."""
    values = _rescaled(stored, dataset, number)
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds values that are no numbers after its rescale slope: replace it.")
    window = intensity.window
    if window in ("auto", "file"):
        own = _by_the_file(values, dataset, number)
        if own is not None:
            return own
        if window == "file":
            raise DataError(f"{path} has no window of its own: set intensity.window to auto, percentile or fixed.")
    if window == "full":
        return linear(values, _all_values(dataset, number))
    return linear(
        values, fixed_ends(intensity) if window == "fixed" else percentile_ends(values, intensity.percentiles)
    )


def _rescaled(stored: Values, dataset: Any, number: int) -> Values:
    """Measured values, float64: by the modality's table, or ``stored · slope + intercept``."""
    from pydicom.pixels.processing import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    slope, intercept = _slope(dataset, number)
    return stored.astype(np.float64) * slope + intercept


def _slope(dataset: Any, number: int) -> tuple[float, float]:
    holder = _holder(dataset, number, "PixelValueTransformationSequence", "RescaleSlope")
    return (1.0, 0.0) if holder is None else (float(holder.RescaleSlope), float(holder.get("RescaleIntercept", 0)))


def _by_the_file(values: Values, dataset: Any, number: int) -> Values | None:
    """The frame through the file's first window, or its table of values; None where it has neither."""
    from pydicom.pixels.processing import apply_voi

    holder = _holder(dataset, number, "FrameVOILUTSequence", "WindowCenter")
    if holder is not None and holder.get("WindowWidth") is not None:
        center, width = _first(holder.WindowCenter), _first(holder.WindowWidth)
        return _windowed(values, center, width, str(holder.get("VOILUTFunction") or "LINEAR"))
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown = np.asarray(apply_voi(np.rint(values).astype(np.int32), dataset), dtype=np.float64)
        return linear(shown, (0.0, float(2**bits - 1)))
    return None


def _windowed(values: Values, center: float, width: float, function: str) -> Values:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3: LINEAR, LINEAR_EXACT or SIGMOID, to 0 … 1."""
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"its window is {width:g} wide")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return linear(values, (center - width / 2, center + width / 2))
    if function != "LINEAR":
        raise ValueError(f"its window has the unknown form {function}")
    return linear(values, (center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2))


def _all_values(dataset: Any, number: int) -> Ends:
    """The smallest and the largest measured value that the file's bits can hold."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(dataset.BitsStored)
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    slope, intercept = _slope(dataset, number)
    ends = sorted((least * slope + intercept, most * slope + intercept))
    return ends[0], ends[1]


def _holder(dataset: Any, number: int, sequence: str, keyword: str) -> Any:
    """The part of the header that holds ``keyword`` for a frame: its own, the one of all frames, or the header."""
    own: Sequence[Any] = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Sequence[Any] = dataset.get("SharedFunctionalGroupsSequence") or ()
    groups = [*own[number : number + 1], *shared[:1]]
    inner = [group.get(sequence)[0] for group in groups if group.get(sequence)]
    return next((holder for holder in (*inner, dataset) if holder.get(keyword) is not None), None)


def _first(value: Any) -> float:
    from pydicom.multival import MultiValue

    return float(value[0] if isinstance(value, MultiValue) else value)


def _stored(dataset: Any, number: int) -> Values:
    """Stored values of a frame: [height, width], or [height, width, 3] in RGB."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    frame = pixel_array(dataset, index=number)
    return apply_color_lut(frame, dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else frame


def _colours(stored: Values, dataset: Any) -> Image.Image:
    """Colours of any depth as 8 bits."""
    palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    most = np.iinfo(stored.dtype).max if palette else 2 ** int(dataset.BitsStored) - 1
    return Image.fromarray(np.rint(stored * (255 / most)).astype(np.uint8))


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _header(path: Path, *, pixels: bool) -> Any:
    try:
        from pydicom import dcmread
        from pydicom.filereader import read_file_meta_info
        from pydicom.uid import DeflatedExplicitVRLittleEndian
    except ImportError as missing:
        raise MissingExtraError(f"{path} is a DICOM file: pip install 'visionpeft[medical]' to read it.") from missing
    with _told(f"{path} is not a DICOM file"):
        # a deflated file is unpacked whole as it is opened, so that a few bytes could fill the memory
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DataError(f"{path} is a deflated DICOM file: write it anew with dcmconv +te.")
        return dcmread(path, stop_before_pixels=not pixels)


def _checked(dataset: Any, path: Path) -> Any:
    """The header, when its sizes are sane, it is a picture, and its compression can be undone here."""
    from pydicom.pixels.decoders.base import get_decoder

    with _told(f"{path} holds no picture"):
        height, width, frames = int(dataset.Rows), int(dataset.Columns), _frames(dataset)
        kind, syntax = str(dataset.PhotometricInterpretation), dataset.file_meta.TransferSyntaxUID
        samples, _, _ = int(dataset.SamplesPerPixel), int(dataset.BitsStored), int(dataset.PixelRepresentation)
    check_size(width, height, path)
    if not 1 <= frames <= MOST_FRAMES:
        raise DataError(f"{path} says that it has {frames:,} frames: 1 to {MOST_FRAMES:,} can be read.")
    if kind not in _GREY and samples != 3 and kind != "PALETTE COLOR":
        raise DataError(f"{path} has colours of the unknown kind {kind}.")
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise DataError(
            f"{path} is compressed as {syntax.name}, which cannot be decoded here: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg, or write it anew with dcmdjpeg or gdcmconv --raw."
        )
    return dataset
