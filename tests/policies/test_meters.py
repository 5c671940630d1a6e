"""Histograms and sliding windows: pure, time is an argument."""

from __future__ import annotations

import pytest

from poolkit.policies.meters import BOUNDS, WINDOWS, Histogram, Meter, Sample, Samples


def filled(*times: float) -> Histogram:
    meter = Meter()
    for time in times:
        meter.record(time)
    return meter.state()


def test_each_time_falls_into_one_range_its_bound_included() -> None:
    histogram = filled(0.0, 0.0001, 0.00011, 0.05, 99.0, -1.0)
    assert len(histogram.counts) == len(BOUNDS) + 1
    assert histogram.counts[0] == 3  # 0, a bound, and a clock that was set back
    assert histogram.counts[1] == 1
    assert histogram.counts[BOUNDS.index(0.05)] == 1
    assert histogram.counts[-1] == 1
    assert histogram.count == 6
    assert histogram.sum == pytest.approx(99.05021)


def test_quantiles_are_within_the_range_of_the_true_one() -> None:
    histogram = filled(*[0.002] * 90, *[0.3] * 9, 42.0)
    assert 0.001 < histogram.quantile(0.5) <= 0.005
    assert 0.1 < histogram.quantile(0.95) <= 0.5
    assert histogram.quantile(1.0) == 10.0
    assert filled().quantile(0.5) == filled().mean == 0.0


def test_zeros_are_filled_up_to_the_number_of_acquires() -> None:
    histogram = filled(0.2).with_zeros(10)
    assert (histogram.count, histogram.counts[0], histogram.sum) == (10, 9, 0.2)
    assert histogram.with_zeros(3) == histogram


def test_a_window_is_what_happened_since_about_then() -> None:
    samples = Samples(Sample(0.0))
    for second in range(1, 601):
        now = Sample(float(second), acquires=10 * second, busy=2.0 * second, connects=second // 100)
        samples.add(now)
    for window, seen in samples.windows(now).items():
        assert window <= seen.seconds <= 1.1 * window + 1
        assert seen.acquires == 10 * seen.seconds
        assert seen.acquires_per_second == pytest.approx(10)
        assert seen.mean_in_use == pytest.approx(2)
        assert seen.mean_use == pytest.approx(0.2)
    assert samples.windows(now)[300].connects == 3


def test_a_window_says_what_it_covers_when_nobody_looked() -> None:
    samples = Samples(Sample(0.0))
    assert samples.windows(Sample(2.0, acquires=4))[10].seconds == 2.0
    late = Sample(3600.0, acquires=7200)
    assert {seen.seconds for seen in samples.windows(late).values()} == {3600.0}
    samples.add(late)
    seen = samples.windows(Sample(3612.0, acquires=7212))[10]
    assert (seen.seconds, seen.acquires) == (12.0, 12)


def test_the_windows_keep_few_samples_however_often_one_looks() -> None:
    samples = Samples(Sample(0.0))
    for step in range(100_000):
        samples.add(Sample(step * 0.01))
    assert sum(len(ring) for ring in samples._rings.values()) <= 12 * len(WINDOWS)
    assert samples.windows(Sample(1000.0))[300].seconds >= 300


def test_an_empty_window_divides_by_nothing() -> None:
    seen = Samples(Sample(5.0)).windows(Sample(5.0))[10]
    assert (seen.acquires_per_second, seen.mean_in_use, seen.mean_use, seen.connect_failure_rate) == (0, 0, 0, 0)
