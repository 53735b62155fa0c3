from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.evaluation import towers
from tests.evaluation.runs import picture
from visionpeft.errors import ConfigError
from visionpeft.evaluation.calibration import UNIT_SEEDS, Calibration, Vectors, cache_name, prompt_scores
from visionpeft.evaluation.encoders import Encoder, load_encoder
from visionpeft.evaluation.probe import PaintRequest, Probe, Subject, _prompt_share
from visionpeft.evaluation.settings import ScoreConfig
from visionpeft.models.preprocess import Preprocessing

SETTINGS = ScoreConfig(
    prompts=("a photo of {subject}", "{subject} on a blue background"),
    unrelated_prompts=("a photo of a red apple", "a photo of a background"),
    seeds=(3, 4),
    steps=2,
)
REAL = [picture(hue, shape="rectangle") for hue in (200, 205, 210)]
SUBJECT = Subject("sks robot", "a robot", REAL)


def hue_of(prompt: str) -> int:
    """A prompt's own colour; the subject's word stands for its class."""
    return zlib.crc32(prompt.replace("sks", "a").encode()) % 256


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """Ground and shape, for pixels in [-1, 1]."""
    return torch.cat([pixels[:, :, 0, 0], pixels[:, :, 16, 16], pixels[:, :, 8, 8] - pixels[:, :, 16, 16]], dim=1)


def colour_encoder() -> Encoder:
    """An encoder that sees colours, and reads the colour that the painter gives a prompt."""
    preprocess = Preprocessing(size=(32, 32))

    def embed_texts(texts: list[str]) -> torch.Tensor:
        return colours(preprocess.pixels([picture(hue_of(text) + 24) for text in texts]))

    return Encoder("colours", colours, embed_texts, preprocess, torch.device("cpu"))


class Painter:
    """Paints as a pure function of prompt, seed and what is active, and notes what it was asked for."""

    def __init__(self, copies: bool = False) -> None:
        self.active, self.copies = True, copies
        self.asked: list[tuple[bool, PaintRequest]] = []

    def __call__(self, requests: Sequence[PaintRequest]) -> list[Image.Image]:
        self.asked += [(self.active, request) for request in requests]
        return [self._picture(request) for request in requests]

    def _picture(self, request: PaintRequest) -> Image.Image:
        if self.active and self.copies and "sks" in request.prompt:
            return REAL[request.seed % len(REAL)]
        return picture(hue_of(request.prompt) + 7 * request.seed)

    @contextmanager
    def using(self, weights: dict[str, float], /):
        before, self.active = self.active, bool(weights)
        yield
        self.active = before


class Lines:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def phase(self, label: str, total: int):
        raise AssertionError("a probe opens no bar")


@pytest.fixture(scope="module")
def encoder():
    return colour_encoder()


def probe(painter, encoder, settings=SETTINGS, **more):
    return Probe(painter, painter, encoder, settings, more.pop("subject", SUBJECT), **more)


def test_an_adapter_that_changes_nothing_scores_nothing(encoder):
    scores = probe(Painter(), encoder).scores()
    assert scores.subject_share == pytest.approx(0.0, abs=1e-6)
    assert scores.prompt_share == pytest.approx(1.0, abs=1e-3)
    assert scores.drift == pytest.approx(0.0, abs=1e-6)
    assert scores.score == pytest.approx(0.0, abs=1e-6)
    assert scores.eligible


def test_a_subject_unlike_its_class_loses_no_prompt_share():
    kind, own, strange = torch.eye(4)[0], torch.eye(4)[1:3], torch.eye(4)[3]
    texts = kind + own  # two prompts of one class

    def scored(pictures):
        return prompt_scores(Vectors(pictures[:, None], pictures[:, None], pictures[None]), texts)

    prompt, other = scored(texts)
    base = Calibration(0.1, 0.9, prompt, other, None, 1.0, texts)
    assert (prompt, other) == pytest.approx((1.0, 0.5))
    assert _prompt_share(base, *scored(texts)) == pytest.approx(1.0)
    assert scored(strange + own) == pytest.approx((0.5, 0.0))  # as far from each prompt as another's picture was
    assert _prompt_share(base, *scored(strange + own)) == pytest.approx(1.0)
    assert _prompt_share(base, *scored((strange + own[:1]).expand(2, 4))) == pytest.approx(0.0)


def test_copies_of_the_real_pictures_are_alike_without_drift(encoder):
    before, after = probe(Painter(), encoder).scores(), probe(Painter(copies=True), encoder).scores()
    assert after.subject > before.subject
    assert after.subject_share > 0.9
    assert after.drift == pytest.approx(0.0, abs=1e-6)
    assert after.diversity < before.diversity


def test_the_base_is_painted_with_the_class_and_the_adapter_with_the_subject(encoder):
    painter = Painter()
    probe(painter, encoder).scores()
    base = [request for active, request in painter.asked if not active]
    adapted = [request for active, request in painter.asked if active]
    assert len(base) == 2 * 2 + UNIT_SEEDS * 2
    assert len(adapted) == 2 * 2 + 2
    assert not any("sks" in request.prompt for request in base)
    assert {r.prompt for r in base[:4]} == {"a photo of a robot", "a robot on a blue background"}
    assert [r.prompt for r in adapted[:2]] == ["a photo of sks robot"] * 2
    assert [r.seed for r in adapted] == [3, 4, 3, 4, 3, 3]
    assert all(request.steps == 2 and request.guidance == 4.0 for _, request in painter.asked)


def test_drift_is_in_distances_between_seeds(encoder):
    class Drifting(Painter):
        def _picture(self, request):
            moved = replace(request, seed=request.seed + 1) if self.active else request
            return super()._picture(moved)

    scores = probe(Drifting(), encoder, SETTINGS.model_copy(update={"max_drift": 0.05})).scores()
    assert 0.2 < scores.drift < 3.0
    assert not scores.eligible


def test_the_base_is_painted_once_and_its_scores_are_kept_on_disk(encoder, tmp_path):
    painter, second = Painter(), Painter()
    first = probe(painter, encoder, cache=tmp_path, base_hash="b").scores()
    kept = probe(second, encoder, cache=tmp_path, base_hash="b")
    assert kept.scores() == first
    assert all(active for active, _ in second.asked)
    kept.scores()
    assert len(second.asked) == 2 * 6


@pytest.mark.parametrize("change", ["base", "settings", "subject", "damage"])
def test_what_the_scores_depend_on_has_them_measured_anew(encoder, tmp_path, change):
    probe(Painter(), encoder, cache=tmp_path, base_hash="b").scores()
    settings = SETTINGS.model_copy(update={"steps": 3}) if change == "settings" else SETTINGS
    subject = replace(SUBJECT, pictures=REAL[:2]) if change == "subject" else SUBJECT
    if change == "damage":
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:-5])
    painter = Painter()
    hash_ = "c" if change == "base" else "b"
    probe(painter, encoder, settings, cache=tmp_path, base_hash=hash_, subject=subject).scores()
    assert any(not active for active, _ in painter.asked)


def test_a_calibration_comes_back_from_its_file(tmp_path):
    value = Calibration(0.5, 0.8, None, None, None, 0.3, torch.randn(2, 4))
    value.save(tmp_path / "new" / "c.safetensors")
    back = Calibration.load(tmp_path / "new" / "c.safetensors")
    assert back is not None
    assert back.metrics() == value.metrics() == {"subject": 0.5, "real": 0.8, "seed_distance": 0.3}
    assert torch.equal(back.unrelated, value.unrelated)
    assert Calibration.load(tmp_path / "none") is None


def test_cache_names_differ_by_picture_and_part():
    assert len({cache_name({"a": 1}, [b"x"]), cache_name({"a": 2}, [b"x"]), cache_name({"a": 1}, [b"y"])}) == 3


def test_an_encoder_without_text_scores_the_subject_alone_and_says_so(tmp_path):
    lines = Lines()
    scores = probe(Painter(copies=True), load_encoder(str(towers.dinov2(tmp_path))), progress=lines).scores()
    assert scores.prompt is None
    assert scores.prompt_share is None
    assert scores.score == pytest.approx(min(scores.subject_share, 1.0))
    assert "prompt" not in scores.metrics()
    assert any("reads no text" in line for line in lines.said)


def test_a_prompt_encoder_reads_the_text_for_one_that_does_not(encoder, tmp_path):
    lines = Lines()
    images = load_encoder(str(towers.dinov2(tmp_path)))
    scores = probe(Painter(), images, prompt_encoder=encoder, progress=lines).scores()
    assert scores.prompt == pytest.approx(probe(Painter(), encoder).scores().prompt, abs=1e-6)
    assert not any("reads no text" in line for line in lines.said)


def test_one_seed_has_no_diversity_and_one_prompt_no_share(encoder):
    settings = SETTINGS.model_copy(update={"seeds": (0,), "prompts": SETTINGS.prompts[:1]})
    scores = probe(Painter(), encoder, settings).scores()
    assert scores.diversity is None
    assert scores.prompt is not None
    assert scores.prompt_share is None
    assert scores.score == pytest.approx(0.0, abs=1e-6)


def test_an_encoder_that_sees_no_prompt_followed_leaves_the_subject_alone(encoder):
    lines = Lines()
    blind = replace(encoder, embed_texts=lambda texts: torch.eye(9)[: len(texts)] * 0.1 + torch.ones(len(texts), 9))
    scores = probe(Painter(copies=True), blind, progress=lines).scores()
    assert scores.prompt is not None
    assert scores.prompt_share is None
    assert scores.score == pytest.approx(min(scores.subject_share, 1.0))
    assert any("does not see" in line for line in lines.said)


def test_a_clip_tower_scores_the_same_pictures(tmp_path):
    scores = probe(Painter(), load_encoder(str(towers.clip(tmp_path)))).scores()
    assert scores.drift == pytest.approx(0.0, abs=1e-6)
    assert scores.prompt is not None


def test_one_real_picture_is_enough(encoder):
    lines = Lines()
    scores = probe(Painter(copies=True), encoder, subject=replace(SUBJECT, pictures=REAL[:1]), progress=lines).scores()
    assert math.isfinite(scores.score)
    assert any("one picture" in line for line in lines.said)


def test_unrelated_prompts_with_the_class_are_left_out(encoder):
    lines, painter = Lines(), Painter()
    probe(painter, encoder, subject=replace(SUBJECT, class_words="an Apple"), progress=lines).scores()
    assert any("'a photo of a red apple' names the subject's class" in line for line in lines.said)
    assert not any("red apple" in request.prompt for _, request in painter.asked)
    with pytest.raises(ConfigError, match="every one names 'photo'"):
        probe(Painter(), encoder, subject=replace(SUBJECT, class_words="photo"))


def test_metrics_are_numbers(encoder):
    metrics = probe(Painter(), encoder).scores().metrics()
    assert metrics["eligible"] == 1.0
    assert set(metrics) == {
        "subject",
        "prompt",
        "other_prompt",
        "diversity",
        "drift",
        "subject_share",
        "prompt_share",
        "score",
        "eligible",
    }
