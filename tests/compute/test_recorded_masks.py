"""Causal masks in a recorded step are those of a launched one, whatever transformers makes of recording."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from visionpeft.compute.recorded import masks_as_launched


def test_recording_is_no_reason_to_write_a_causal_mask_out(monkeypatch: pytest.MonkeyPatch):
    def recording_counts(tensor: object = None) -> bool:
        del tensor
        return True

    monkeypatch.setattr(masking_utils, "is_tracing", recording_counts)
    with masks_as_launched():
        assert not masking_utils.is_tracing(None)
        assert not masking_utils.is_tracing()
        assert masking_utils.is_tracing(torch.ones(1, 4))  # a mask of padding, whose values cannot be looked at
    assert masking_utils.is_tracing is recording_counts
