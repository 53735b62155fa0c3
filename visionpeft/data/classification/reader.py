"""What reads the pictures of a source by name, and remembers what each looked like."""

from __future__ import annotations

from abc import ABC, abstractmethod

from PIL import Image

from visionpeft.data.classification.fingerprint import Fingerprint, fingerprint


class PictureReader(ABC):
    """Reads pictures by name; fingerprints are taken once."""

    def __init__(self) -> None:
        self._prints: dict[str, Fingerprint] = {}

    @abstractmethod
    def read(self, name: str) -> Image.Image:
        """Return the picture, 8-bit RGB, upright.

        Raises:
            DataError: it cannot be read; the message names the file.
        """

    @abstractmethod
    def key(self, name: str) -> str:
        """Return a hash of all that the picture is read from (bytes, frame, settings), without decoding it."""

    def fingerprint(self, name: str) -> Fingerprint:
        """Return what the picture looks like; it is decoded the first time.

        Raises:
            DataError: as :meth:`read`.
        """
        if name not in self._prints:
            self._prints[name] = fingerprint(self.read(name))
        return self._prints[name]
