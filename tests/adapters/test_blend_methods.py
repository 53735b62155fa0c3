"""Every blend against its definition on full matrices in float64, written down anew here."""

import math

import pytest
import torch

from tests.adapters.test_blend import made
from visionpeft.adapters.algebra import delta, deltas, dense_svd, factor_svd
from visionpeft.adapters.archive import Adapter
from visionpeft.adapters.blend import blend
from visionpeft.adapters.blend_elements import agreeing, keeping
from visionpeft.adapters.blend_exact import subspaces
from visionpeft.adapters.blend_table import BLENDS, Draws
from visionpeft.adapters.methods import METHODS
from visionpeft.adapters.spec import DoraSpec, LohaSpec, LokrSpec, LoraSpec
from visionpeft.errors import AdapterError


def total(dense, weights):
    return sum(w * d for w, d in zip(weights, dense, strict=True))


def top(d, share):
    order = d.abs().flatten().argsort(descending=True)[: round(share * d.numel())]
    mask = torch.zeros(d.numel(), dtype=torch.float64)
    mask[order] = 1
    return d * mask.reshape(d.shape)


def elected(changes):
    out = torch.zeros_like(changes[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            values = [float(c[i, j]) for c in changes]
            agree = [v for v in values if v * sum(values) > 0]
            out[i, j] = sum(agree) / len(agree) if agree else 0.0
    return out


def dropped(dense, density):
    return [d * (Draws(3, "unet.x").uniform(i, d.shape) < density).double() / density for i, d in enumerate(dense)]


def scaled(dense, weights):
    return [w * d for w, d in zip(weights, dense, strict=True)]


def della(dense, weights):
    kept = []
    for index, d in enumerate(dense):
        draws, out = Draws(3, "unet.x").uniform(index, d.shape), torch.zeros_like(d)
        for i, row in enumerate(d):
            for rank, j in enumerate(row.abs().argsort(descending=True).tolist()):
                drop = (1 - 0.6) - 0.3 / 2 + 0.3 / len(row) * rank
                out[i, j] = row[j] / (1 - drop) if draws[i, j] < 1 - drop else 0.0
        kept.append(out)
    return elected(scaled(kept, weights))


def slerp(dense, weights):
    (a, b), strength = dense, sum(weights)
    theta, t = math.acos(float((a * b).sum() / a.norm() / b.norm())), weights[1] / strength
    return strength * (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


def orthogonal(dense, weights):
    a, b = dense
    u, s, vt = torch.linalg.svd(a, full_matrices=False)
    k = int((s > 1e-9).sum())
    p, q = u[:, :k] @ u[:, :k].mT, vt[:k].mT @ vt[:k]
    return weights[0] * a + weights[1] * (b - p @ b - b @ q + p @ b @ q)


PRUNED = {"density": 0.4}
DEFINITIONS = {
    "cat": ({}, total),
    "linear": ({}, total),
    "svd": ({}, total),
    "slerp": ({}, slerp),
    "orthogonal": ({}, orthogonal),
    "subtract": ({}, lambda d, w: w[0] * d[0] - w[1] * d[1]),
    "negate": ({}, lambda d, w: -total(d, w)),
    "magnitude_prune": (PRUNED, lambda d, w: total([top(one, 0.4) for one in d], w)),
    "ties": (PRUNED, lambda d, w: elected(scaled([top(one, 0.4) for one in d], w))),
    "dare": (PRUNED, lambda d, w: total(dropped(d, 0.4), w)),
    "dare_ties": (PRUNED, lambda d, w: elected(scaled(dropped(d, 0.4), w))),
    "della": ({"density": 0.6, "epsilon": 0.3}, della),
    "breadcrumbs": (
        {"density": 0.5, "gamma": 0.1},
        lambda d, w: total([top(one, 0.6) - top(one, 0.1) for one in d], w),
    ),
}


def conv(rank, seed):
    generator = torch.manual_seed(seed)
    tensors = {
        "unet.x.lora_A.weight": torch.randn(rank, 3, 3, 3, generator=generator),
        "unet.x.lora_B.weight": torch.randn(8, rank, 1, 1, generator=generator),
    }
    return Adapter({"unet": LoraSpec(targets=("x",), rank=rank, alpha=3)}, tensors)


def close(result, wanted):
    return float((result.double() - wanted).norm() / wanted.norm()) < 1e-5


def best(matrix, rank):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def dense(adapter):
    wide = {key.removeprefix("unet.x."): value.double() for key, value in adapter.tensors.items() if ".x." in key}
    return delta(adapter.specs["unet"], wide, path="x")


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("method", sorted(BLENDS))
def test_a_blend_is_its_definition_whole_and_cut(method, layer):
    make = conv if layer == "conv" else lambda rank, seed: made(rank, seed, places=("x",), out=8, inn=9, alpha=5)
    pair, weights = (make(2, 1), make(3, 2)), (0.7, 0.4)
    options, definition = DEFINITIONS[method]
    wanted = definition([dense(one).flatten(1) for one in pair], weights)
    given = dict(zip("ab", zip(pair, weights, strict=True), strict=True))
    for rank in (8, 2):
        result = blend(given, method, rank, seed=3, **options)
        kept = float(best(wanted, rank).square().sum() / wanted.square().sum())
        assert close(deltas(result)["unet.x"].flatten(1), best(wanted, rank))
        assert result.specs["unet"].rank <= rank
        assert float(result.metadata.extra["blend_energy_kept"]) == pytest.approx(kept, abs=2e-6)
    assert deltas(result)["unet.x"].shape == dense(pair[0]).shape


def test_every_option_of_every_blend_is_known():
    assert {name: row.options for name, row in BLENDS.items() if row.options} == {
        "orthogonal": ["side"],
        "magnitude_prune": ["density"],
        "ties": ["density", "elect"],
        "dare": ["density"],
        "dare_ties": ["density", "elect"],
        "della": ["density", "epsilon", "elect"],
        "breadcrumbs": ["density", "gamma"],
    }


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della"])
def test_draws_depend_on_the_seed_and_the_layer_alone(method):
    both = {"a": (made(2, 1), 1.0), "b": (made(2, 2), 1.0)}
    one, again, other = (blend(both, method, 5, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.tensors[key], again.tensors[key]) for key in one.tensors)
    assert not torch.equal(deltas(one)["unet.x"], deltas(other)["unet.x"])
    alone = {n: (made(2, s, places=("x",)), 1.0) for n, s in (("a", 1), ("b", 2))}
    assert torch.equal(deltas(blend(alone, method, 5))["unet.x"], deltas(one)["unet.x"])


def test_dropping_keeps_the_mean():
    draws = [deltas(blend({"a": (made(2, 1), 1.0)}, "dare", 5, seed, density=0.5))["unet.x"] for seed in range(300)]
    assert torch.allclose(torch.stack(draws).mean(0), deltas(made(2, 1))["unet.x"], atol=0.6)


def test_della_drops_the_small_rather_than_the_large():
    stays = keeping(torch.tensor([[0.1, -3.0, 2.0, 0.0]]), 0.5, 0.4)
    assert torch.allclose(stays, torch.tensor([[0.5, 0.7, 0.6, 0.4]]).double())


def test_signs_are_elected_by_total_or_by_count():
    changes = [torch.tensor([[5.0, 1.0]]), torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, 0.0]])]
    assert agreeing(changes).tolist() == [[5.0, 0.0]]
    assert agreeing(changes, "count").tolist() == [[-1.5, 0.0]]


def test_projected_adapters_share_nothing():
    one, two, three = (made(2, seed, places=("x",), out=9, inn=8) for seed in (1, 2, 3))
    given = {"a": (one, 1.0), "b": (two, 1.0), "c": (three, 0.5)}
    result = deltas(blend(given, "orthogonal"))["unet.x"] - deltas(one)["unet.x"]
    columns, rows = subspaces(one.tensors["unet.x.lora_A.weight"], one.tensors["unet.x.lora_B.weight"])
    assert (columns.mT @ result.double()).abs().max() < 1e-5
    assert (result.double() @ rows).abs().max() < 1e-5
    half = deltas(blend({"a": (one, 1.0), "b": (two, 1.0)}, "orthogonal", side="out"))["unet.x"]
    rest = half - deltas(one)["unet.x"]
    assert (columns.mT @ rest.double()).abs().max() < 1e-5
    assert (rest.double() @ rows).abs().max() > 1e-2


def mixed(method, seed):
    """An adapter of another method for a layer [8, 12], and its base weight."""
    generator = torch.manual_seed(seed)
    spec, parts = {
        "loha": (
            LohaSpec(targets=("x",), rank=2, alpha=3),
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 12), "hada_w2_a": (8, 2), "hada_w2_b": (2, 12)},
        ),
        "lokr": (LokrSpec(targets=("x",), rank=2), {"lokr_w1": (2, 3), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}),
        "dora": (
            DoraSpec(targets=("x",), rank=2),
            {"lora_A.weight": (2, 12), "lora_B.weight": (8, 2), "lora_magnitude_vector": (8,)},
        ),
        "lora": (LoraSpec(targets=("x",), rank=2), {"lora_A.weight": (2, 12), "lora_B.weight": (8, 2)}),
    }[method]
    tensors = {f"unet.x.{name}": torch.randn(*shape, generator=generator) for name, shape in parts.items()}
    return Adapter({"unet": spec}, tensors)


def test_methods_of_all_kinds_blend():
    base = {"unet.x": torch.randn(8, 12, generator=torch.manual_seed(9))}
    kinds = ("lora", "loha", "lokr", "dora")
    given = {method: (mixed(method, seed), 0.5 + seed) for seed, method in enumerate(kinds)}
    wanted = sum(
        weight
        * delta(
            one.specs["unet"],
            {key[7:]: value.double() for key, value in one.tensors.items()},
            base["unet.x"].double(),
            path="x",
        )
        for one, weight in given.values()
    )
    assert close(deltas(blend(given, "svd", 8, base=base))["unet.x"], wanted)
    assert close(deltas(blend(given, "linear", energy=1.0, base=base))["unet.x"], wanted)
    low = {name: pair for name, pair in given.items() if METHODS[name].low_rank}
    exact = sum(weight * deltas(one)["unet.x"] for one, weight in low.values())
    assert close(deltas(blend(low))["unet.x"], exact.double())
    with pytest.raises(AdapterError, match=r"'dora' cannot be blended as it is: .* no weight at 'unet.x'"):
        blend(given, "svd", 4, base={"unet.y": base["unet.x"]})


BAD = {
    "density": ("ties", {"density": 0.0}, "lies in"),
    "elect": ("ties", {"elect": "lot"}, "by total or by count"),
    "della": ("della", {"density": 0.95, "epsilon": 0.2}, "which must lie in"),
    "gamma": ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "together 1 at most"),
    "side": ("orthogonal", {"side": "left"}, "one of both, out, in"),
    "option": ("ties", {"densty": 0.5}, "Did you mean 'density'"),
    "rank": ("svd", {"rank": 0}, "a rank is at least 1"),
}


@pytest.mark.parametrize("fault", sorted(BAD))
def test_options_are_checked(fault):
    method, options, message = BAD[fault]
    with pytest.raises(AdapterError, match=message):
        blend({"a": (made(2, 1), 1.0), "b": (made(2, 2), 1.0)}, method, **options)


def test_slerp_is_of_two_and_goes_from_one_to_the_other():
    one, two = made(2, 1), made(2, 2)
    with pytest.raises(AdapterError, match="exactly two adapters, not 1"):
        blend({"a": (one, 1.0)}, "slerp")
    with pytest.raises(AdapterError, match="cannot be below 0"):
        blend({"a": (one, 1.0), "b": (two, -1.0)}, "slerp")
    for weights, wanted in (((1.0, 0.0), one), ((0.0, 1.0), two)):
        result = deltas(blend({"a": (one, weights[0]), "b": (two, weights[1])}, "slerp"))
        assert all(close(result[place], change.double()) for place, change in deltas(wanted).items())
    same = deltas(blend({"a": (one, 0.5), "b": (one, 0.5)}, "slerp"))
    assert all(close(same[place], change.double()) for place, change in deltas(one).items())


def test_one_adapter_alone():
    one = made(2, 1)
    assert torch.allclose(deltas(blend({"a": (one, 1.0)}, "negate"))["unet.x"], -deltas(one)["unet.x"])
    pruned = deltas(blend({"a": (one, 1.0)}, "ties", 5, density=0.5))["unet.x"]
    assert int((pruned.abs() > 1e-5).sum()) == 15
    nothing = blend({"a": (one, 0.0)})
    assert nothing.specs["unet"].rank == 1
    assert not any(change.any() for change in deltas(nothing).values())


def test_both_singular_value_decompositions_are_torchs():
    generator = torch.manual_seed(0)
    down, up = torch.randn(3, 11, generator=generator).double(), torch.randn(7, 3, generator=generator).double()
    values = torch.linalg.svdvals(up @ down)
    u, found, vt = factor_svd(down, up)
    assert torch.allclose(found, values[:3])
    assert torch.allclose((u * found) @ vt, up @ down)
    for matrix in (torch.randn(7, 11, generator=generator), torch.randn(11, 7, generator=generator)):
        u, found, vt = dense_svd(matrix, 4)
        assert torch.allclose(found, torch.linalg.svdvals(matrix.double())[:4])
        assert torch.allclose((u * found) @ vt, best(matrix.double(), 4))
        u, found, vt = dense_svd(matrix)
        assert torch.allclose((u * found) @ vt, matrix.double())
