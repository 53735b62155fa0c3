import torch

from visionpeft.training.batches import BatchPlan
from visionpeft.training.rng import StepRng, mix_seed

CPU = torch.device("cpu")


def rng(seed=0, step=0, slots=range(8), whole=8):
    return StepRng(seed, step, torch.tensor(list(slots)), whole, CPU)


def test_processes_and_micro_batches_see_parts_of_one_draw():
    whole, parts = rng(), [rng(slots=[0, 1, 2]), rng(slots=[3, 4, 5, 6, 7])]
    for draw in (lambda r: r.normal((3, 2)), lambda r: r.uniform("t"), lambda r: r.integers(1000, "t")):
        assert torch.equal(torch.cat([draw(part) for part in parts]), draw(whole))


def test_draws_depend_on_seed_step_and_stream_alone():
    assert torch.equal(rng().normal((4,)), rng().normal((4,)))
    draws = [rng().normal((4,)), rng(seed=1).normal((4,)), rng(step=1).normal((4,)), rng().normal((4,), "other")]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 4
    before = torch.get_rng_state()
    rng().uniform("t")
    assert torch.equal(before, torch.get_rng_state())


def test_draws_have_their_distribution():
    many = rng(slots=range(20000), whole=20000)
    assert abs(many.normal(()).mean()) < 0.03
    assert abs(many.normal(()).std() - 1) < 0.03
    assert abs(many.uniform("t").mean() - 0.5) < 0.02
    assert set(many.integers(3, "t").tolist()) == {0, 1, 2}


def test_seeds_are_the_same_everywhere():
    assert mix_seed(0, 1, "noise") == 5410907298277423401
    assert mix_seed(1, 2) != mix_seed(12)


def test_plans_share_a_step_out():
    one = BatchPlan(seed=1, samples=10, batch_size=8, accumulation=1, rank=0, world=1)
    for size, accumulation, world in ((2, 2, 2), (4, 1, 2), (1, 2, 4)):
        plans = [BatchPlan(1, 10, size, accumulation, rank, world) for rank in range(world)]
        assert {plan.global_batch for plan in plans} == {8}
        for step in range(3):
            shared = [p for plan in plans for micro in plan.micro(step) for p in micro]
            assert sorted(shared, key=lambda p: p.slot) == one.whole(step)
