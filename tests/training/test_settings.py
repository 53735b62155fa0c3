import pytest
from pydantic import ValidationError

from visionpeft.training.settings import TrainConfig


def test_defaults_are_usable_and_frozen():
    config = TrainConfig()
    assert config.optimizer.name == "adamw"
    with pytest.raises(ValidationError):
        config.steps = 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stepz": 3}, "Extra inputs"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"optimizer": "adafactr"}, "Did you mean 'adafactor'"),
        ({"learning_rate": -1.0}, "a learning rate is between 0 and 10, got -1.0"),
        ({"learning_rate": {"unet": 1e-4, "text_encoder": 1e4}}, "got text_encoder=10000.0"),
        ({"learning_rate": {}}, "got none"),
        ({"early_stop": 3}, "early_stop needs evaluations: set evaluate_every"),
        ({"ema": 1.0}, "less than 1"),
        ({"trackers": ["tensorbord"]}, "tensorboard"),
    ],
)
def test_what_cannot_be_is_named(given, said):
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(given)
    assert said in str(caught.value)


def test_what_may_change_does_not_count():
    config = TrainConfig(steps=3)
    free = {"steps": 9, "checkpoint_every": 1, "trackers": ("tensorboard",), "gradient_checkpointing": True}
    assert config.fixed(1) == config.model_copy(update=free).fixed(1)
    halves = config.model_copy(update={"batch_size": 2})
    assert config.fixed(1) == halves.fixed(2) != halves.fixed(1)
    for change in ({"seed": 1}, {"warmup": 1}, {"precision": "fp32"}, {"max_grad_norm": None}):
        assert config.fixed(1) != config.model_copy(update=change).fixed(1)
