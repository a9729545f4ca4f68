"""States of several methods or monitors are loaded all or none."""

import pytest
import torch
from torch import nn

from supple import PlasticityMonitor, SpectralRegularizer
from supple.integrations import monitors
from supple.integrations.loading import load_all


def test_monitors_keep_their_states_if_one_is_refused():
    mine = {"actor": PlasticityMonitor(nn.Linear(3, 3)), "critic": PlasticityMonitor(nn.Linear(2, 2))}
    theirs = {"actor": PlasticityMonitor(nn.Linear(3, 3)), "critic": PlasticityMonitor(nn.Linear(5, 5))}
    before = str(monitors.state_dict(mine))
    with pytest.raises(ValueError, match="expected a state"):
        monitors.load_state_dict(mine, monitors.state_dict(theirs))
    assert str(monitors.state_dict(mine)) == before
    monitors.load_state_dict(mine, {"actor": theirs["actor"].state_dict(), "critic": mine["critic"].state_dict()})
    assert str(mine["actor"].state_dict()) == str(theirs["actor"].state_dict())


def test_methods_keep_their_states_if_one_is_refused():
    first, second = SpectralRegularizer(nn.Linear(3, 3)), SpectralRegularizer(nn.Linear(2, 2))
    other = SpectralRegularizer(nn.Linear(3, 3), seed=1)
    before = first.state["weight"]["v"].clone()
    with pytest.raises(ValueError, match="expected a state"):
        load_all([(first, other.state_dict()), (second, other.state_dict())])
    assert torch.equal(first.state["weight"]["v"], before)
    load_all([(first, other.state_dict())])
    assert torch.equal(first.state["weight"]["v"], other.state["weight"]["v"])
