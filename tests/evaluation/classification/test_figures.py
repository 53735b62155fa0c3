from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from tests.evaluation.classification.made import KINDS, made
from visionpeft.errors import DataError
from visionpeft.evaluation.classification.calibration import at_temperature, calibration
from visionpeft.evaluation.classification.figures import ClassificationFigures, classification_figures
from visionpeft.evaluation.classification.predictions import Predictions
from visionpeft.evaluation.classification.settings import OperatingPointConfig, ReportConfig

QUICK = ReportConfig(resamples=60, subgroups=("site",))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_survive_json(kind):
    found = classification_figures(made(kind, 90), made(kind, 60, seed=1), QUICK)
    text = found.model_dump_json()
    assert ClassificationFigures.model_validate_json(text) == found
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert found.flat()["auc"] == found.metrics["auc"].value
    assert {"ece", "brier", "log_loss"} <= found.flat().keys()


def test_nothing_is_chosen_on_the_test():
    """Other test pictures change no threshold and no temperature; other validation pictures change both."""
    validation = made("multilabel", 80, seed=1)
    one = classification_figures(made("multilabel", 90, seed=2), validation, QUICK)
    two = classification_figures(made("multilabel", 90, seed=3), validation, QUICK)
    other = classification_figures(made("multilabel", 90, seed=2), made("multilabel", 80, seed=4), QUICK)

    def chosen(found: ClassificationFigures) -> list[float]:
        return [found.temperature.value, *(part.operating_point.threshold for part in found.classes)]

    assert chosen(one) == chosen(two)
    assert all(a != b for a, b in zip(chosen(one), chosen(other), strict=True))


def test_the_chosen_threshold_is_used_on_the_test():
    test, validation = made("binary", 120), made("binary", 80, seed=1)
    rule = OperatingPointConfig(rule="sensitivity", at_least=0.9)
    found = classification_figures(test, validation, QUICK.model_copy(update={"operating_point": rule}))
    point = found.classes[1].operating_point
    assert found.classes[0].operating_point is None
    said = test.probabilities[:, 1] >= point.threshold
    table = confusion_matrix(test.targets, said)
    assert found.confusion == tuple(tuple(row) for row in table.tolist())
    assert found.metrics["sensitivity"].value == pytest.approx(table[1, 1] / table[1].sum())
    assert found.metrics["specificity"].value == pytest.approx(table[0, 0] / table[0].sum())
    assert point.sensitivity >= 0.9
    assert found.metrics["auc"].value == pytest.approx(roc_auc_score(test.targets, test.probabilities[:, 1]))


def test_calibration_is_of_the_test_before_and_after():
    test, validation = made("multiclass", 120), made("multiclass", 80, seed=1)
    found = classification_figures(test, validation, QUICK)
    assert found.calibration == calibration(test, 15)
    assert found.calibrated == calibration(at_temperature(test, found.temperature.value), 15)
    assert found.calibrated != found.calibration


def test_without_validation_it_is_said():
    found = classification_figures(made("binary", 60), None, QUICK)
    assert found.temperature is None
    assert found.calibrated is None
    assert found.validation_count == 0
    assert found.classes[1].operating_point.threshold == 0.5
    assert any("no validation set" in note for note in found.notes)


def test_patients_are_counted_and_named_as_what_is_resampled():
    given = made("binary", 60)
    found = classification_figures(given, None, QUICK)
    assert (found.patients, found.resampled) == (20, "patients")
    bare = Predictions(given.names, given.logits, given.targets, given.labels, "binary")
    found = classification_figures(bare, None, ReportConfig(resamples=20))
    assert (found.patients, found.resampled) == (None, "pictures")


def test_a_class_that_the_test_lacks_is_said():
    given = made("multiclass", 90)
    found = classification_figures(given.subset(np.flatnonzero(given.targets != 3)), given, QUICK)
    assert "No test picture is 'D': nothing can be said of that class." in found.notes
    assert found.classes[3].figures["auc"].value is None
    assert found.classes[3].figures["auc"].note == "no value: no picture is 'D'"
    assert found.metrics["auc"].note.startswith("mean without 'D'")
    assert found.metrics["auc"].value == pytest.approx(np.mean([c.figures["auc"].value for c in found.classes[:3]]))


def test_a_temperature_that_does_not_help_is_said():
    sure = made("binary", 200, signal=4.0)
    unsure = made("binary", 200, seed=1, signal=0.0)
    assert any("raises the log loss of the test" in n for n in classification_figures(unsure, sure, QUICK).notes)


def test_other_labels_in_validation_are_refused():
    with pytest.raises(DataError, match="expected the same of both"):
        classification_figures(made("multiclass", 60, 4), made("multiclass", 60, 3), QUICK)


def test_many_classes_are_no_trouble():
    labels = tuple(f"class {number}" for number in range(120))
    rng = np.random.default_rng(0)
    given = Predictions(
        tuple("x" * 600), rng.normal(size=(600, 120)), rng.integers(120, size=600), labels, "multiclass"
    )
    found = classification_figures(given, None, ReportConfig(resamples=5))
    assert len(found.confusion) == 120
    assert sum(map(sum, found.confusion)) == 600
