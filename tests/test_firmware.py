"""What a Raspberry Pi's firmware says of power and heat."""

from __future__ import annotations

import pytest

from hetero.devices._firmware import disturbance, words


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([], ""),
        ([0], "never since boot"),
        ([0x1, 0x50005], "now under-voltage and throttled; since boot under-voltage and throttled"),
        ([0x80000], "since boot soft temperature limit"),
        ([0x2], "now clock capped"),
    ],
)
def test_the_last_reading_in_words(readings, said):
    assert words(readings) == said


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([], ""),
        ([0, 0], ""),
        ([0x50000, 0x50000], ""),  # long ago, and whether it happened again cannot be told
        ([0, 0x10000], "under-voltage, says the firmware"),
        ([0x10000, 0x50000], "throttled, says the firmware"),
        ([0x4, 0x0], "throttled, says the firmware"),
        ([0x50000, 0x50004], "throttled, says the firmware"),
    ],
)
def test_only_what_happened_meanwhile_disturbed_a_run(readings, said):
    assert disturbance(readings) == said
