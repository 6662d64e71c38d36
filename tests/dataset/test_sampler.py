"""How often each candidate is drawn: at the ratio, fairly, and by seed and epoch alone."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luna16_monai.dataset.sampler import RatioSampler


def pairs(sampler: RatioSampler, epoch: int, start: int = 0) -> list[tuple[int, int]]:
    sampler.set_position(epoch, start)
    return list(sampler)


@pytest.mark.parametrize(
    ("ratio", "samples", "expected"),
    [
        ([1, 5], 12, (2, 10)),
        ([1, 5], 200, (33, 167)),  # 200 / 6 = 33.3
        ([1, 1], 12, (6, 6)),
        ([2, 1], 12, (8, 4)),
        ([1, 0], 12, (12, 0)),
        ([0, 3], 12, (0, 12)),
        ([0.5, 2.5], 12, (2, 10)),
        ([1, 5], 1, (0, 1)),
    ],
)
def test_ratio_sampler_draws_the_classes_exactly_at_the_ratio(ratio, samples, expected):
    labels = np.array([1] * 7 + [0] * 100)
    sampler = RatioSampler(labels, ratio, samples)
    assert len(sampler) == samples
    for epoch in range(3):
        drawn = [labels[index] for index, _ in pairs(sampler, epoch)]
        assert (drawn.count(1), drawn.count(0)) == expected


def test_ratio_sampler_draws_three_classes():
    labels = np.array([0] * 5 + [1] * 5 + [2] * 5)
    sampler = RatioSampler(labels, [1, 2, 3], 12, classes=[2, 0, 1])
    assert Counter(labels[index] for index, _ in sampler) == {2: 2, 0: 4, 1: 6}


def test_ratio_sampler_repeats_no_negative_before_all_were_drawn():
    labels = np.array([0] * 37 + [1] * 3)
    sampler = RatioSampler(labels, [1, 5], 12, seed=5)
    # ten negatives an epoch: in 37 epochs each comes exactly ten times, and each run of 37 has all of them
    drawn = [index for epoch in range(37) for index in sampler._from_pool(1, epoch).tolist()]
    for first in range(0, 370, 37):
        assert sorted(drawn[first : first + 37]) == list(range(37))
    of_epochs = [index for epoch in range(37) for index, _ in pairs(sampler, epoch) if labels[index] == 0]
    assert Counter(of_epochs) == dict.fromkeys(range(37), 10)
    # the first three epochs, 30 of 37, hold nothing twice
    assert len(set(of_epochs[:30])) == 30


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99)
)
def test_ratio_sampler_is_fair_at_any_size(positives, negatives, samples, one, other, seed):
    labels = np.array([1] * positives + [0] * negatives)
    if one + other == 0:
        one = 1
    sampler = RatioSampler(labels, [one, other], samples, seed=seed)
    drawn = [index for epoch in range(4) for index, _ in pairs(sampler, epoch)]
    assert len(drawn) == 4 * samples
    for label, pool in ((1, positives), (0, negatives)):
        count = Counter(index for index in drawn if labels[index] == label)
        # nobody is drawn twice more often than anybody else
        times = [count[index] for index in np.flatnonzero(labels == label).tolist()]
        assert len(times) == pool
        assert max(times) - min(times) <= 1


def test_ratio_sampler_repeats_positives_as_needed():
    labels = np.array([1, 1, 1] + [0] * 500)
    sampler = RatioSampler(labels, [1, 1], 100)
    count = Counter(index for index, _ in sampler if index < 3)
    assert sorted(count.values()) == [16, 17, 17]


def test_ratio_sampler_makes_every_negative_equally_likely():
    labels = np.array([1] + [0] * 10)
    first = Counter(int(RatioSampler(labels, [0, 1], 1, seed=seed)._from_pool(1, 0)[0]) for seed in range(2000))
    # 200 expected each, with a standard deviation of 13.4
    assert sorted(first) == list(range(1, 11))
    assert all(abs(times - 200) < 5 * 13.4 for times in first.values())


def test_ratio_sampler_mixes_the_classes():
    labels = np.array([1] * 50 + [0] * 50)
    sampler = RatioSampler(labels, [1, 1], 1000)
    kinds = [int(labels[index]) for index, _ in sampler]
    # 500 changes between neighbours expected with a standard deviation of 16; one if the classes were not mixed
    assert 420 < sum(a != b for a, b in itertools.pairwise(kinds)) < 580


def test_ratio_sampler_depends_on_seed_and_epoch_alone():
    labels = np.array([1] * 5 + [0] * 50)
    one, other = RatioSampler(labels, samples_per_epoch=60, seed=1), RatioSampler(labels, samples_per_epoch=60, seed=1)
    third = pairs(one, 3)
    for epoch in (0, 7, 1):  # another history
        pairs(other, epoch)
    np.random.seed(0)
    torch.manual_seed(0)
    assert pairs(other, 3) == third
    assert pairs(one, 4) != third
    assert pairs(RatioSampler(labels, samples_per_epoch=60, seed=2), 3) != third
    seeds = [seed for epoch in range(50) for _, seed in pairs(one, epoch)]
    assert len(set(seeds)) == len(seeds) == 3000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert {type(value) for pair in third for value in pair} == {int}


def test_ratio_sampler_goes_on_from_a_start_position():
    sampler = RatioSampler([1] * 5 + [0] * 50, samples_per_epoch=60, seed=1)
    whole = pairs(sampler, 2)
    for start in (0, 1, 17, 59, 60):
        assert pairs(sampler, 2, start) == whole[start:]
        assert len(sampler) == 60  # of the whole epoch, wherever it starts


def test_ratio_sampler_shares_an_epoch_among_ranks():
    labels = [1] * 5 + [0] * 50
    whole = pairs(RatioSampler(labels, samples_per_epoch=60, seed=1), 2)
    ranks = [RatioSampler(labels, samples_per_epoch=60, seed=1, rank=rank, world_size=3) for rank in range(3)]
    shares = [pairs(sampler, 2) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [20, 20, 20]
    # position by position, so that three ranks with batches of 4 see what one sees with batches of 12
    assert [pair for position in zip(*shares, strict=True) for pair in position] == whole
    assert pairs(ranks[1], 2, 5) == shares[1][5:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 0]}, r"class 1 has no candidate in the training split, but ratio \[1, 5\] asks for it"),
        ({"labels": [1, 1]}, "class 0 has no candidate in the training split"),
        ({"labels": [0, 1], "ratio": [1, 5, 2]}, r"ratio \[1, 5, 2\]: 2 numbers from 0 were expected"),
        ({"labels": [0, 1], "ratio": [0, 0]}, r"ratio \[0, 0\]: 2 numbers"),
        ({"labels": [0, 1], "ratio": [-1, 5]}, r"ratio \[-1, 5\]: 2 numbers"),
        ({"labels": [0, 1], "samples_per_epoch": 0}, "samples_per_epoch 0 cannot be shared by 1 processes"),
        ({"labels": [0, 1], "samples_per_epoch": 10, "world_size": 3}, "samples_per_epoch 10 cannot be shared by 3"),
    ],
)
def test_ratio_sampler_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RatioSampler(**arguments)


def test_ratio_sampler_allows_an_empty_class_that_is_not_asked_for():
    assert sorted(index for index, _ in RatioSampler([0, 0], [0, 1], 2)) == [0, 1]
