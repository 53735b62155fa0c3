"""Attention backends are tried, not believed."""

from __future__ import annotations

import pytest
import torch

from visionpeft.compute import attention
from visionpeft.compute.attention import Backend, probe

CPU = torch.device("cpu")


def test_every_backend_is_answered_for():
    backends = probe(CPU)
    assert [b.name for b in backends] == [*attention.SDPA, "xformers"]
    assert all(bool(b.why) != b.works for b in backends)
    assert next(b for b in backends if b.name == "sdpa math").works


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (lambda q, k, v: 0 * (q + k) + v, "its values are off by"),
        (lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v) * 1.001, "its values are off by"),
        (
            lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q.detach(), k.detach(), v),
            "its backward pass",
        ),
    ],
)
def test_wrong_values_and_missing_gradients_are_seen(attend, why: str):
    backend = attention.try_backend("made up", CPU, attend)
    assert not backend.works
    assert backend.why.startswith(why)


def test_a_right_one_works_and_a_missing_one_is_named():
    right = attention.try_backend("right", CPU, torch.nn.functional.scaled_dot_product_attention)
    assert right == Backend("right", "cpu", works=True)

    def missing(q, k, v):
        import no_such_kernels  # noqa: F401  # pyright: ignore

    assert attention.try_backend("absent", CPU, missing).why == "no_such_kernels is not installed"
