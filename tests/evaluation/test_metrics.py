"""Metrics against closed forms, scipy, and data whose truth is known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap

from profusion_pipeline.evaluation.metrics import (
    bootstrap_interval,
    cosine_similarities,
    diversity,
    paired_difference,
)

RNG = np.random.default_rng(0)


def test_cosines_are_scipys():
    first, second = RNG.normal(size=(2, 7, 5))
    distances = cdist(first, second, "cosine")
    np.testing.assert_allclose(cosine_similarities(first, second), 1 - distances.diagonal())
    np.testing.assert_allclose(cosine_similarities(first, second[:1]), 1 - distances[:, 0])


def test_bytes_do_not_overflow():
    first, second = RNG.integers(0, 256, (2, 7, 5), dtype=np.uint8)
    np.testing.assert_allclose(cosine_similarities(first, second), 1 - cdist(first, second, "cosine").diagonal())
    np.testing.assert_allclose(diversity(first, np.zeros(7)), diversity(first.astype(float), np.zeros(7)))


def test_a_feature_that_is_missing_has_no_similarity():
    first = np.array([[np.nan, np.nan], [1.0, 0.0]])
    assert np.isnan(cosine_similarities(first, np.array([[1.0, 1.0]]))).tolist() == [True, False]


def test_diversity_is_the_mean_distance_to_the_others_of_the_group():
    features, groups = RNG.normal(size=(7, 5)), np.array([4, 4, 9, 4, 9, 4, 1])
    found = diversity(features, groups)
    for group in (4, 9):
        members = features[groups == group]
        expected = cdist(members, members, "cosine").sum(1) / (len(members) - 1)
        np.testing.assert_allclose(found[groups == group], expected)
    assert np.isnan(found[6])


def test_the_same_picture_twice_has_no_diversity():
    np.testing.assert_allclose(diversity(np.ones((3, 4)), np.zeros(3)), 0, atol=1e-12)


def test_the_interval_is_scipys_over_subjects_means():
    means = RNG.normal(0.5, 0.1, 40)
    subjects = np.repeat(np.arange(40), 10)
    noise = RNG.normal(0, 0.3, (40, 10))
    values = (means[:, None] + noise - noise.mean(1, keepdims=True)).ravel()
    mean, low, high = bootstrap_interval(values, subjects, draws=10_000)
    theirs = bootstrap((means,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert mean == pytest.approx(means.mean())
    assert (low, high) == pytest.approx(theirs, abs=2e-3)


def test_nan_counts_for_nothing():
    values, subjects = np.array([0.25, np.nan, 0.75, np.nan]), np.array(["ada", "ada", "bob", "cleo"])
    assert bootstrap_interval(values, subjects) == bootstrap_interval(values[[0, 2]], subjects[[0, 2]])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """30 subjects of 5 pictures: between subjects 0.1, between pictures of one 0.2."""
    subjects = np.repeat(np.arange(30), 5)
    covered = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        values = 0.5 + rng.normal(0, 0.1, 30)[subjects] + rng.normal(0, 0.2, 150)
        _, low, high = bootstrap_interval(values, subjects, draws=400, seed=trial)
        covered += low < 0.5 < high
    assert 0.90 <= covered / 300 <= 0.975  # a percentile bootstrap of 30 is a little narrow


def test_pairs_tell_apart_what_intervals_cannot():
    """Subjects differ by 0.3, the systems by 0.05 on each of them."""
    subjects = np.repeat(np.arange(30), 10)
    hard = RNG.normal(0.5, 0.3, 30)[subjects]
    first, second = hard + 0.05 + RNG.normal(0, 0.05, 300), hard + RNG.normal(0, 0.05, 300)
    assert bootstrap_interval(second, subjects).high > bootstrap_interval(first, subjects).low
    mean, low, high, share = paired_difference(first, second, subjects)
    assert mean == pytest.approx(np.mean(first - second)) and 0 < low < mean < high < 0.1 and share == 1.0
    back = paired_difference(second, first, subjects)
    assert back == pytest.approx((-mean, -high, -low, 0.0))


def test_equal_systems_are_ahead_in_half_of_the_draws():
    assert paired_difference(np.ones(4), np.ones(4), np.arange(4)) == (0.0, 0.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_similarities(np.ones((3, 2)), np.ones((2, 2))), r"`second` must be \[N, D\] or \[1, D\]"),
        (lambda: diversity(np.ones((3, 2)), np.ones(2)), "`groups` must name the group of each of 3 pictures, got 2"),
        (lambda: bootstrap_interval(np.ones(3), np.ones(2)), "`subjects` must name one for each of 3 values, got 2"),
        (lambda: bootstrap_interval(np.full(3, np.nan), np.ones(3)), "There is no number among 3 values"),
        (lambda: paired_difference(np.ones(3), np.ones(2), np.ones(3)), "scores of the same pictures, got 3, 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
