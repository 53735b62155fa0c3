import pytest
from pydantic import ValidationError

from visionpeft.tasks.dreambooth_settings import DreamBoothData, InstanceData, PreviewConfig, PriorData


def instance(**more):
    return InstanceData(**{"images": "photos", "prompt": "a photo of sks robot", **more})


@pytest.mark.parametrize(
    ("settings", "noun", "kind", "subject"),
    [
        ({}, "robot", "a robot", "sks robot"),
        ({"prompt": "a photo of sks old robot"}, "old robot", "an old robot", "sks old robot"),
        ({"prompt": "sks robot on a table", "kind": "robot"}, "robot", "a robot", "sks robot"),
        ({"prompt": "a photo of <me>", "word": "<me>", "kind": "an animal"}, "animal", "an animal", "<me>"),
    ],
)
def test_words(settings, noun, kind, subject):
    words = instance(**settings)
    assert (words.noun, words.class_words, words.subject_words) == (noun, kind, subject)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a photo of a robot"}, "does not hold the subject's word 'sks'"),
        ({"prompt": "a photo of sks"}, "set kind"),
        ({"word": "two words"}, "word"),
        ({"propmt": "x"}, "propmt"),
        ({"subject_token": "new"}, "rare"),
    ],
)
def test_faults_of_the_subject(settings, message):
    with pytest.raises(ValidationError, match=message):
        instance(**settings)


def test_defaults_leave_the_pictures_alone():
    data = DreamBoothData(instance=instance())
    assert (data.crop, data.flip, data.prior, data.min_snr_gamma) == ("none", False, None, None)


def test_cache_takes_yamls_switches():
    assert DreamBoothData(instance=instance(), cache=True).cache == "memory"
    assert DreamBoothData(instance=instance(), cache=False).cache == "none"


def test_random_crops_are_not_cached():
    with pytest.raises(ValidationError, match="set cache to none"):
        DreamBoothData(instance=instance(), crop="random")
    assert DreamBoothData(instance=instance(), crop="random", cache="none").crop == "random"


@pytest.mark.parametrize("settings", [{"sampler": "ddmi"}, {"guidance": 0.5}, {"steps": 0}])
def test_sampling_is_checked(settings):
    with pytest.raises(ValidationError):
        PriorData(prompt="a photo of a robot", **settings)
    with pytest.raises(ValidationError):
        PreviewConfig(prompts=("a",), **settings)


def test_an_unknown_sampler_names_the_nearest():
    with pytest.raises(ValidationError, match="Did you mean 'euler'"):
        PreviewConfig(prompts=("a",), sampler="eulr")
