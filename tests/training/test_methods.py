"""The table of methods: its options, and how a strength is shown."""

import pytest
from torch import nn

from supple.training.methods import METHODS, check_options, strength_text


def test_given_options_come_before_the_tables():
    assert METHODS["network-reset"].on(nn.Linear(2, 2), 1.0).every == 1000
    assert METHODS["network-reset"].on(nn.Linear(2, 2), 1.0, every=7).every == 7


@pytest.mark.parametrize(("method", "option"), [("redo", "every"), ("upgd", "noise")])
def test_true_is_no_number(method, option):
    with pytest.raises(ValueError, match=f"expected {option} of {method} to be like .*, got True"):
        check_options(method, METHODS[method], {option: True})


def test_a_strength_of_zero_is_shown_and_what_has_none_has_a_dash():
    assert [strength_text(name, 0.0) for name in ("l2", "none", "module:Own")] == ["0", "-", "0"]
