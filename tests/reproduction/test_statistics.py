"""Statistics of accuracies and gains over seeds."""

import pytest

from oekd_fast.reproduction.statistics import accuracies

from ..support.summaries import FIVE, summary_of


def test_statistics_equal_values_computed_by_hand():
    found = accuracies(FIVE, "selected")
    assert found["family"][0] == pytest.approx({"mean": 73.0, "deviation": 2**0.5})
    assert found["baseline"][4] == pytest.approx({"mean": 42.0, "deviation": 8**0.5})
    # The gains of the two seeds are 6 and 4 points, or 15 % and 9.0909 %.
    assert found["gain_points"][4] == pytest.approx({"mean": 5.0, "deviation": 2**0.5})
    assert found["gain_percent"][4] == pytest.approx(
        {"mean": (15 + 100 / 11) / 2, "deviation": (15 - 100 / 11) / 2**0.5}
    )
    assert found["ensemble"] == pytest.approx({"mean": 77.0, "deviation": 2**0.5})
    assert accuracies(FIVE, "last_epoch")["family"][0]["mean"] == pytest.approx(72.0)
    assert accuracies(FIVE, "best_test")["family"][0]["mean"] == pytest.approx(73.5)


def test_best_test_accuracies_need_all_seeds():
    unknown = summary_of([1.0], [1.0])
    older = {name: value for name, value in unknown.items() if not name.startswith("best_test")}
    older["students"] = [{k: v for k, v in s.items() if not k.startswith("best_test")} for s in unknown["students"]]
    for summary in (unknown, older):
        assert accuracies([summary_of([1.0], [1.0], best=0.5), summary], "best_test") is None
        assert accuracies([summary], "selected")["family"] == [{"mean": 1.0, "deviation": None}]
        assert accuracies([summary], "last_epoch")["gain_percent"] == [None]  # the baseline is 0 %


def test_a_missing_ensemble_of_one_seed_keeps_the_other_results():
    one = summary_of([2.0], [1.0], best=0.5) | {"best_test_ensemble_accuracy": None}
    found = accuracies([summary_of([4.0], [1.0], best=0.5), one], "best_test")
    assert found["ensemble"] is None and found["family"][0]["mean"] == pytest.approx(3.5)
    assert found["gain_points"][0]["mean"] == pytest.approx(2.0)
    assert accuracies([one], "selected")["ensemble"] == {"mean": 80.0, "deviation": None}
    assert accuracies([], "selected") is None
