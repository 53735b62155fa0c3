"""Sound inside a page: an utterance as ``data:`` text that any browser plays."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
from numpy.typing import NDArray

RATE = 16_000


def sound_uri(audio: NDArray[np.float32], rate: int = RATE) -> str:
    """Return sound as ``data:`` text: WAV with 16 bits a sample, which every browser plays.

    Args:
        audio: [samples], mono, -1 to 1; what is beyond is cut.
        rate: samples a second.
    """
    values = np.nan_to_num(np.asarray(audio, np.float32)).clip(-1, 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values * 32_767).round().astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"
