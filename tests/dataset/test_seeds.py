"""Seeds derived from a run's seed and counters."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.dataset.seeds import ITEM_STREAM, ORDER_STREAM, POOL_STREAM, VALIDATION_STREAM, derive


def test_derive_is_the_first_63_bits_of_numpys_seed_sequence():
    high, low = (int(word) for word in np.random.SeedSequence([7, 0, 3]).generate_state(2))
    # the whole first word of 32 bits, and all but the last bit of the second
    assert derive(7, 0, 3) == high * 2**31 + low // 2
    assert type(derive(7, 0, 3)) is int


def test_derive_gives_what_it_gave_before():
    # a checkpoint goes on bit for bit only while these stay
    assert [derive(7, 0, 3), derive(0, 1), derive(0, 2)] == [
        7197503938817316163,
        8514611595135926838,
        6745496414556587486,
    ]


def test_derive_depends_on_every_number_and_on_their_order():
    seeds = [derive(seed, stream, epoch) for seed in range(5) for stream in range(4) for epoch in range(50)]
    assert len(set(seeds)) == 5 * 4 * 50
    assert derive(1, 2, 3) != derive(1, 3, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # the highest bit is used: about half of the seeds have it
    assert 400 < sum(seed >= 2**62 for seed in seeds) < 600


def test_streams_differ():
    assert len({ORDER_STREAM, POOL_STREAM, ITEM_STREAM, VALIDATION_STREAM}) == 4


def test_derive_refuses_a_seed_below_0():
    with pytest.raises(ValueError, match="seed -1: give 0 or more"):
        derive(-1, 0)
