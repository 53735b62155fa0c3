import pytest

from tests.tiny import tiny_sd1, tiny_sd2, tiny_sdxl
from visionpeft.models.base import Base, weights_hash
from visionpeft.models.family import components_of, family_of

PIPELINES = {"sd1": tiny_sd1, "sd2": tiny_sd2, "sdxl": tiny_sdxl}


def base_of(name):
    pipeline = PIPELINES[name]()
    return Base(pipeline, family_of(pipeline), f"tiny/{name}", weights_hash(components_of(pipeline)))


@pytest.fixture(scope="module", params=list(PIPELINES))
def base(request):
    return base_of(request.param)


@pytest.fixture(scope="module")
def sd1():
    return base_of("sd1")
