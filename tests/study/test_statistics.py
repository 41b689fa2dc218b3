"""The statistics of reports against scipy and arithmetic by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from glot.study.statistics import draw_rows, equivalence, holm, interval, paired, resampled, spread, wald
from glot.training.metrics import floors

A, B = [0.31, 0.35, 0.30, 0.36, 0.33], [0.30, 0.31, 0.30, 0.33, 0.32]


def test_spread_is_the_t_interval():
    found = spread(A)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(A), scale=stats.sem(A))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.n == 5 and found.sd == pytest.approx(np.std(A, ddof=1))
    assert math.isnan(spread([0.5]).half_width)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_paired_is_scipys_paired_t_and_names_what_it_could_see():
    found = paired(A, B)
    assert found.p == pytest.approx(stats.ttest_rel(A, B).pvalue) and found.difference == pytest.approx(0.018)
    shifted = [b + found.detectable + (a - b) - found.difference for a, b in zip(A, B, strict=True)]
    assert paired(shifted, B).p == pytest.approx(0.05)
    assert paired([0.5, 0.6], [0.5, 0.6]).p == 1.0 and paired([0.5, 0.75], [0.25, 0.5]).p == 0.0
    assert math.isnan(paired([0.5], [0.4]).p)
    with pytest.raises(ValueError, match="2 seeds against 1"):
        paired([1, 2], [1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(holm([0.01, float("nan")])[1]) and holm([0.9, 0.8]) == [1.0, 1.0]


def test_floors():
    labels = np.array([1, 1, 1, 0, 1])
    found = floors(labels, is_class=True)
    majority = np.full(5, np.bincount(labels.astype(int)).argmax())
    macro = f1_score(labels, majority, average="macro", zero_division=0)
    expected = {"accuracy": 0.8, "macro_f1": macro, "f1": f1_score(labels, np.ones(5)), "mcc": 0.0, "auroc": 0.5, "average_precision": 0.8}
    assert found == pytest.approx(expected)


def test_equal_scores_have_no_spread_though_their_mean_is_rounded():
    assert np.std([0.7] * 3, ddof=1) > 0  # what numpy says
    assert spread([0.7] * 3).sd == 0 and spread([0.7] * 3).in_words == "0.700"
    assert spread([0.7, 0.8]).in_words.startswith("0.750 ± ") and spread([0.7]).in_words == "0.700"
    same = paired([0.7, 0.8, 0.9], [0.6, 0.7, 0.8])
    assert same.p == 0 and same.detectable == 0
    still = paired([0.574] * 3, [0.5739] * 3, None)  # one run for all seeds: no sample
    assert still.difference == pytest.approx(0.0001) and np.isnan([still.p, still.detectable]).all()
    assert paired([0.1 + 0.2] * 3, [0.3] * 3).p == 1  # but for rounding


def test_equal_differences_over_seeds_count_as_one_rows_spread():
    tied = paired([0.775] * 2, [0.675] * 2, 1 / 120)
    error = 1 / 120 / math.sqrt(2)
    assert tied.p == pytest.approx(2 * stats.t.sf(0.1 / error, 1)) and 0.03 < tied.p < 0.05
    assert equivalence([0.5] * 8, [0.5] * 8, 0.02, 1 / 120) < 0.01 and equivalence([0.5] * 2, [0.5] * 2, 0.02, 1 / 120) > 0.05
    assert paired([0.7, 0.8], [0.6, 0.75], 1 / 120) == paired([0.7, 0.8], [0.6, 0.75])


def test_a_metric_that_some_resamples_have_not_gives_an_interval_of_the_others():
    labels, outputs = np.array([1] + [0] * 29), np.random.default_rng(0).normal(size=(30, 2))
    draws = resampled("average_precision", labels, outputs, draw_rows(30, 400))
    known = draws[np.isfinite(draws)]
    assert 200 < len(known) < 300  # (1 - 1/30)^30 of the draws have no positive row
    error, low, high = interval(draws)
    assert error == pytest.approx(known.std(ddof=1)) and [low, high] == pytest.approx(np.quantile(known, [0.025, 0.975]).tolist())
    assert np.isnan(interval(np.where(np.arange(400) < 199, 0.5, np.nan))).all() and np.isnan(wald(0.5, math.nan, 0.1)).all()


def test_resamples_of_three_classes_are_scikit_learns():
    generator = np.random.default_rng(0)
    labels, outputs, counts = generator.integers(3, size=40), generator.normal(size=(40, 3)), draw_rows(40, 5)
    rows = [np.repeat(np.arange(40), one) for one in counts]
    expected = [matthews_corrcoef(labels[row], outputs[row].argmax(1)) for row in rows]
    np.testing.assert_allclose(resampled("mcc", labels, outputs, counts), expected)
