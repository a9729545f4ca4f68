"""Streams of random numbers: any task can be made again alone, and no two depend on each other."""

import pytest
import torch

from supple.lab.datasets import Dataset, Examples, digits
from supple.lab.shifts import SHIFTS, Stream, batch_order, generator, random_labels

SEEDS, TASKS = range(4), range(5)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture(params=SHIFTS)
def shift(request):
    return SHIFTS[request.param]


def test_labels_are_labels(shift, data):
    labels = shift(data, 3, 2)
    assert (labels.shape, labels.dtype) == (data.train.labels.shape, torch.int64)
    assert set(labels.tolist()) == set(range(data.classes))


def test_tasks_can_be_made_in_any_order(shift, data):
    forwards = {(seed, task): shift(data, seed, task) for seed in SEEDS for task in TASKS}
    torch.manual_seed(5)
    for (seed, task), labels in reversed(forwards.items()):
        assert torch.equal(shift(data, seed, task), labels)


def test_the_global_random_state_is_left_alone(shift, data):
    state = torch.get_rng_state()
    shift(data, 0, 0)
    batch_order(20, 4, 2, seed=0, task=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_any_two_tasks_agree_by_chance_alone(data):
    everything = torch.stack([random_labels(data, seed, task) for seed in SEEDS for task in TASKS])
    agreement = (everything[:, None] == everything).double().mean(-1)
    deviation = (0.1 * 0.9 / len(data.train)) ** 0.5
    first, second = torch.triu_indices(len(everything), len(everything), offset=1)
    assert (agreement[first, second] - 0.1).abs().max() < 4.5 * deviation  # of 190 pairs, one in 700 such sets


@pytest.mark.parametrize("classes", [2, 10, 37])
def test_labels_are_uniform(classes):
    data = Dataset(Examples(torch.zeros(1000, 1), torch.zeros(1000)), None, None, classes, (0.0,), (1.0,))
    counts = torch.cat([random_labels(data, 0, task) for task in range(100)]).bincount(minlength=classes).double()
    expected = 100_000 / classes
    statistic = ((counts - expected).square() / expected).sum()
    freedom = classes - 1
    assert abs(statistic - freedom) < 3.5 * (2 * freedom) ** 0.5  # chi-square's mean and deviation
    assert len(counts) == classes


def test_the_streams_never_change(data):
    assert random_labels(data, 0, 0)[:12].tolist() == [4, 0, 1, 0, 0, 0, 6, 8, 4, 2, 9, 3]
    assert random_labels(data, 1, 2)[:6].tolist() == [6, 2, 0, 0, 7, 3]
    assert batch_order(10, 4, 2, seed=0, task=0).tolist() == [[5, 9, 6, 0], [3, 2, 1, 8], [2, 9, 5, 8], [4, 1, 3, 7]]


def test_the_numbers_of_the_streams_never_change():
    assert (Stream.LABELS, Stream.ORDER) == (1, 2)


def test_every_name_has_numbers_of_its_own():
    names = [(stream, seed, counter) for stream in Stream for seed in range(5) for counter in range(5)]
    assert len({generator(*name).random() for name in names}) == len(names)
    assert generator(*names[7]).random() == generator(*names[7]).random()


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (12, 4), (5, 5), (1797, 256), (3, 1)])
def test_an_epoch_is_the_start_of_a_permutation(examples, batch_size):
    epochs, steps = 3, examples // batch_size
    order = batch_order(examples, batch_size, epochs, seed=1, task=2)
    assert (order.shape, order.dtype) == ((epochs * steps, batch_size), torch.int64)
    for epoch in order.view(epochs, -1):
        assert len(set(epoch.tolist())) == steps * batch_size
        assert epoch.min() >= 0
        assert epoch.max() < examples


def test_every_epoch_task_and_seed_has_an_order_of_its_own():
    orders = [batch_order(100, 10, 3, seed, task).view(3, -1) for seed in SEEDS for task in TASKS]
    assert len({tuple(epoch.tolist()) for order in orders for epoch in order}) == 3 * len(orders)


def test_what_is_left_out_differs_by_epoch():
    left_out = [set(range(10)) - set(epoch.tolist()) for epoch in batch_order(10, 4, 20, seed=0, task=0).view(20, -1)]
    assert set.union(*left_out) == set(range(10))


def test_fewer_epochs_are_the_start_of_more():
    assert torch.equal(batch_order(10, 3, 5, seed=0, task=1)[:6], batch_order(10, 3, 2, seed=0, task=1))
