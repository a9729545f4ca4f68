"""Shifts: what each task shows, written out image by image; any task can be made again alone."""

import dataclasses
import itertools
import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from supple.lab import shifts
from supple.lab.datasets import Dataset, Examples, digits
from supple.lab.shifts import (
    ABSENT,
    DRIFT,
    SHIFTS,
    batch_order,
    label_flip,
    pixel_permutation,
    random_labels,
    seen,
    streamed,
)
from supple.runs.streams import Stream, generator

SEEDS, TASKS = (0, 4), range(4)
CHANNELS, HEIGHT, WIDTH, CLASSES = 3, 4, 5, 21


def images_and_labels(count, classes=CLASSES):
    """Every class is there, and no two images are the same."""
    rng = np.random.default_rng(9)
    images = rng.integers(256, size=(count, CHANNELS, HEIGHT, WIDTH), dtype=np.uint8)
    labels = rng.permutation(np.arange(count) % classes)
    return Examples(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def data():
    return Dataset(images_and_labels(120), None, images_and_labels(45), CLASSES, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(params=SHIFTS)
def shift(request):
    return SHIFTS[request.param]


# Each definition as the papers have it, for one image after the other: which images are there, where each pixel of an
# image comes from, and what its label is.


def draws(stream, seed, *counters):
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([stream, seed, *counters])))


def as_they_are(data):
    everywhere = list(itertools.product(range(HEIGHT), range(WIDTH)))
    return {image: int(label) for image, label in enumerate(data.train.labels)}, everywhere


def slow_random_labels(data, seed, task):
    _, places = as_they_are(data)
    labels = draws(1, seed, task).integers(CLASSES, size=len(data.train))
    return {image: int(labels[image]) for image in range(len(data.train))}, places


def slow_growing_set(data, seed, task, share):
    labels, places = as_they_are(data)
    order = draws(9, seed).permutation(len(labels)).tolist()
    return {image: labels[image] for image in order[: len(labels) * (task + 1) // share]}, places


def slow_shuffled_labels(data, seed, task):
    _, places = as_they_are(data)
    order = draws(1, seed, task).permutation(len(data.train)).tolist()
    return {image: int(data.train.labels[other]) for image, other in enumerate(order)}, places


def slow_fixed_random_labels(data, seed, task):
    return slow_random_labels(data, seed, 0)


def slow_drifting_labels(data, seed, task):
    _, places = as_they_are(data)
    count = len(data.train)
    age = [Fraction(int(rank), count) for rank in draws(7, seed).permutation(count)]
    labels = {image: int(draws(1, seed, 0).integers(CLASSES, size=count)[image]) for image in range(count)}
    for _ in range(task):
        for image in range(count):
            before, age[image] = age[image], age[image] + Fraction(1, 40)
            if int(age[image]) > int(before):
                labels[image] = int(draws(1, seed, int(age[image])).integers(CLASSES, size=count)[image])
    return labels, places


def permuted(places, permutation):
    return [places[source] for source in permutation]


def slow_pixel_permutation(data, seed, task):
    labels, places = as_they_are(data)
    return labels, permuted(places, draws(3, seed, task).permutation(HEIGHT * WIDTH))


def slow_sampled_pixel_permutation(data, seed, task):
    labels, places = slow_pixel_permutation(data, seed, task)
    sampled = draws(9, seed, task).choice(len(labels), len(labels) // 6, replace=False).tolist()
    return {image: labels[image] for image in sampled}, places if task else as_they_are(data)[1]


def slow_compounding_pixel_permutation(data, seed, task):
    labels, places = as_they_are(data)
    for each in range(task + 1):  # the images of the task before are permuted
        places = permuted(places, draws(3, seed, each).permutation(HEIGHT * WIDTH))
    return labels, places


def slow_drifting_pixels(data, seed, task):
    labels, places = as_they_are(data)
    for each in range(task):
        moved = draws(3, seed, each).choice(HEIGHT * WIDTH, 2, replace=False)  # a fortieth of 20, but two at least
        places[moved[0]], places[moved[1]] = places[moved[1]], places[moved[0]]
    return labels, places


def slow_label_flip(data, seed, task):
    labels, places = as_they_are(data)
    other = draws(4, seed, task).permutation(CLASSES)
    return {image: int(other[label]) for image, label in labels.items()}, places


def slow_compounding_label_flip(data, seed, task):
    labels, places = as_they_are(data)
    for each in range(task + 1):
        other = draws(4, seed, each).permutation(CLASSES)
        labels = {image: int(other[label]) for image, label in labels.items()}
    return labels, places


def slow_class_incremental(data, seed, task):
    labels, places = as_they_are(data)
    there = draws(5, seed).permutation(CLASSES).tolist()[: 5 + 5 * task]
    return {image: label for image, label in labels.items() if label in there}, places


def slow_class_pairs(data, seed, task):
    labels, places = as_they_are(data)
    upcoming = []
    for turn in range(task + 1):  # one class of 21 has no partner in each turn
        order = draws(6, seed, turn).permutation(CLASSES).tolist()
        upcoming += [(order[2 * pair], order[2 * pair + 1]) for pair in range(10)]
    pair = upcoming[task]
    return {image: pair.index(label) for image, label in labels.items() if label in pair}, places


SLOW = {
    "random-labels": slow_random_labels,
    "shuffled-labels": slow_shuffled_labels,
    "fixed-random-labels": slow_fixed_random_labels,
    "ordered-random-labels": slow_random_labels,
    "drifting-labels": slow_drifting_labels,
    "pixel-permutation": slow_pixel_permutation,
    "sampled-pixel-permutation": slow_sampled_pixel_permutation,
    "warm-start": partial(slow_growing_set, share=2),
    "ten-chunks": partial(slow_growing_set, share=10),
    "pixel-permutation-of-5000": slow_pixel_permutation,  # of fewer images, it has them all
    "pixel-permutation-of-50000": slow_pixel_permutation,
    "compounding-pixel-permutation": slow_compounding_pixel_permutation,
    "drifting-pixels": slow_drifting_pixels,
    "label-flip": slow_label_flip,
    "label-flip-of-2500": slow_label_flip,
    "compounding-label-flip": slow_compounding_label_flip,
    "class-incremental": slow_class_incremental,
    "class-pairs": slow_class_pairs,
}


@pytest.mark.parametrize("name", SHIFTS)
def test_tasks_are_as_defined(name, data):
    tasks = [task for task in (0, 1, 3, 11, 45) if task < SHIFTS[name].tasks(data)]
    for seed, task in itertools.product(SEEDS, tasks):
        found = SHIFTS[name].task(data, seed, task)
        expected, places = SLOW[name](data, seed, task)
        chosen, labels = found.training_examples(data)
        assert (chosen.dtype, labels.dtype, labels.shape) == (torch.int64, torch.int64, (len(data.train),))
        assert {int(image): int(labels[image]) for image in chosen} == expected
        assert chosen.tolist() == sorted(expected)
        shown = seen(data.train.images[None], None if found.pixels is None else found.pixels[None])[0]
        for image, (row, column) in itertools.product((0, 77), itertools.product(range(HEIGHT), range(WIDTH))):
            source = places[row * WIDTH + column]
            assert torch.equal(shown[image, :, row, column], data.train.images[image, :, *source])


@pytest.mark.parametrize("name", [name for name in SHIFTS if not name.endswith("-labels")])
def test_what_is_tested_on_follows_from_the_training_examples(name, data):
    """Where labels have to do with their images, both parts have the same classes under the same labels."""
    task = SHIFTS[name].task(data, 1, 2)
    (chosen, labels), (tested, test_labels) = task.examples(data.train), task.examples(data.test)
    meaning = {int(data.train.labels[image]): int(labels[image]) for image in chosen}
    assert {int(data.test.labels[image]): int(test_labels[image]) for image in tested} == meaning
    assert len(tested) == sum(int(label) in meaning for label in data.test.labels)


def test_outputs_are_as_many_as_labels(shift, data):
    chosen, labels = shift.task(data, 0, 3).training_examples(data)
    assert labels[chosen].min() >= 0
    assert labels[chosen].max() < shift.outputs(data) <= CLASSES


# Pure functions of the data, the seed and the task.


def same(first, second):
    return vars(first).keys() == vars(second).keys() and all(
        torch.equal(value, other) if isinstance(value, torch.Tensor) and other is not None else value is other
        for value, other in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def test_tasks_can_be_made_in_any_order(shift, data):
    forwards = {(seed, task): shift.task(data, seed, task) for seed in SEEDS for task in TASKS}
    torch.manual_seed(5)
    np.random.seed(5)
    for (seed, task), made in reversed(forwards.items()):
        assert same(shift.task(data, seed, task), made)


@pytest.mark.parametrize("name", SHIFTS)
def test_seeds_and_tasks_differ(name, data):
    first = 1 if name == "drifting-pixels" else 0  # which begins with the images as they are, whatever the seed
    # All the data have arrived in a warm start's second task, whatever the seed.
    tasks = [0] if name in ("fixed-random-labels", "warm-start") else range(first, first + 3)
    made = [SHIFTS[name].task(data, seed, task) for seed in SEEDS for task in tasks]
    assert not any(same(first, second) for first, second in itertools.combinations(made, 2))


def test_nothing_global_is_touched(shift, data):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    content = data.train.images.clone(), data.train.labels.clone()
    shift.task(data, 0, 2)
    batch_order(20, 4, 2, seed=0, task=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(data.train.images, content[0])
    assert torch.equal(data.train.labels, content[1])


def test_a_task_moves_between_devices(shift, data):
    moved = shift.task(data, 0, 1).to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert same(shift.task(data, 0, 1).to("cpu"), shift.task(data, 0, 1))


@pytest.mark.parametrize(("name", "tasks"), [("warm-start", 2), ("ten-chunks", 10)])
def test_data_that_arrive_are_kept_until_all_are_there(name, tasks, data):
    shift = SHIFTS[name]
    sets = [set(shift.task(data, 3, task).images.tolist()) for task in range(tasks)]
    assert all(before < after for before, after in itertools.pairwise(sets))
    assert [len(images) for images in sets] == [120 * (task + 1) // tasks for task in range(tasks)]
    assert shift.tasks(data) == tasks


@pytest.mark.parametrize("shift", [pixel_permutation, label_flip])
def test_a_stream_has_other_images_each_task(shift, data):
    first, second = (streamed(shift, data, 1, task, images=20).images.tolist() for task in (0, 1))
    assert first == sorted(draws(9, 1, 0).choice(len(data.train), 20, replace=False).tolist())
    assert len(set(second)) == 20
    assert first != second


def test_unshuffled_epochs_are_all_alike():
    assert batch_order(10, 4, 2, seed=0, task=3, shuffled=False).tolist() == 2 * [[0, 1, 2, 3], [4, 5, 6, 7]]


# What each kind promises over many tasks.


def test_any_two_tasks_of_random_labels_agree_by_chance_alone():
    data = digits()
    everything = torch.stack([random_labels(data, seed, task).labels for seed in range(4) for task in range(5)])
    agreement = (everything[:, None] == everything).double().mean(-1)
    deviation = (0.1 * 0.9 / len(data.train)) ** 0.5
    first, second = torch.triu_indices(len(everything), len(everything), offset=1)
    assert (agreement[first, second] - 0.1).abs().max() < 4.5 * deviation  # of 190 pairs, one in 700 such sets


@pytest.mark.parametrize("name", ["random-labels", "drifting-labels"])
@pytest.mark.parametrize("classes", [2, 10, 37])
def test_labels_are_uniform(name, classes):
    examples = Examples(torch.zeros(1000, 1, 1, 1), torch.zeros(1000))
    data = Dataset(examples, None, None, classes, (0.0,), (1.0,))
    # Drifting labels are all new after 40 tasks.
    tasks = range(100) if name == "random-labels" else range(0, 4000, 40)
    counts = torch.cat([SHIFTS[name].task(data, 0, task).labels for task in tasks]).bincount(minlength=classes).double()
    expected = 100_000 / classes
    statistic = ((counts - expected).square() / expected).sum()
    freedom = classes - 1
    assert abs(statistic - freedom) < 3.5 * (2 * freedom) ** 0.5  # chi-square's mean and deviation
    assert len(counts) == classes


@pytest.mark.parametrize("count", [1797, 2560, 47])
def test_the_same_share_of_labels_is_drawn_anew_each_epoch(count, monkeypatch):
    data = Dataset(images_and_labels(count), None, None, CLASSES, (0.0,) * 3, (1.0,) * 3)

    class Counter:
        """Gives every image the number of the draw as its label."""

        def __init__(self, stream, seed, *counters):
            self.counters, self.rng = counters, generator(stream, seed, *counters)

        def permutation(self, size):
            return self.rng.permutation(size)

        def integers(self, classes, size):
            return np.full(size, self.counters[0])

    monkeypatch.setattr(shifts, "generator", Counter)
    drawn = [SHIFTS["drifting-labels"].task(data, 2, task).labels for task in range(202)]
    assert torch.equal(drawn[0], torch.zeros(count, dtype=torch.int64))
    anew = [int((after - before).sum()) for before, after in itertools.pairwise(drawn)]
    assert all(((after - before) <= 1).all() for before, after in itertools.pairwise(drawn))
    assert {abs(each - count * DRIFT) < 1 for each in anew} == {True}
    for task in (0, 1, 40, 160):  # in any 40 epochs every image gets one new label
        assert torch.equal(drawn[task + 40], drawn[task] + 1)


@pytest.mark.parametrize("side", [4, 8, 28])
def test_the_same_share_of_pixels_moves_each_epoch(side):
    examples = Examples(torch.zeros(2, 1, side, side, dtype=torch.uint8), torch.tensor([0, 1]))
    data = Dataset(examples, None, None, 2, (0.0,), (1.0,))
    orders = [SHIFTS["drifting-pixels"].task(data, 5, task).pixels for task in range(60)]
    assert torch.equal(orders[0], torch.arange(side * side))
    assert {sorted(order.tolist()) == list(range(side * side)) for order in orders} == {True}
    moved = [int((before != after).sum()) for before, after in itertools.pairwise(orders)]
    assert set(moved) == {max(2, round(side * side / 40))}


@pytest.mark.parametrize("name", ["label-flip", "compounding-label-flip"])
def test_a_label_flip_is_a_permutation(name, data):
    for task in range(30):
        assert sorted(SHIFTS[name].task(data, 4, task).classes.tolist()) == list(range(CLASSES))


def test_compounding_is_each_fresh_one_after_the_other(data):
    labels, images = data.train.labels, data.train.images[None]
    for task in range(6):
        labels = SHIFTS["label-flip"].task(data, 1, task).classes[labels]
        images = seen(images, SHIFTS["pixel-permutation"].task(data, 1, task).pixels[None])
        assert torch.equal(SHIFTS["compounding-label-flip"].task(data, 1, task).classes[data.train.labels], labels)
        at_once = SHIFTS["compounding-pixel-permutation"].task(data, 1, task).pixels[None]
        assert torch.equal(seen(data.train.images[None], at_once), images)


def test_classes_come_five_at_a_time_and_stay(data):
    shift, before = SHIFTS["class-incremental"], set()
    assert shift.tasks(data) == 4
    for task in range(4):
        classes = shift.task(data, 0, task).classes
        there = {label for label, now in enumerate(classes.tolist()) if now != ABSENT}
        assert all(classes[label] == label for label in there)
        assert (len(there), there > before or not before) == (5 * (task + 1), True)
        before = there


@pytest.mark.parametrize("classes", [2, 3, 10, 21])
def test_pairs_use_every_class_once_before_one_returns(classes, data):
    used = Dataset(images_and_labels(120, classes), None, None, classes, (0.0,) * 3, (1.0,) * 3)
    pairs = [
        [int((SHIFTS["class-pairs"].task(used, 6, task).classes == label).nonzero()) for label in (0, 1)]
        for task in range(3 * (classes // 2))
    ]
    for turn in range(3):
        used_now = {label for pair in pairs[turn * (classes // 2) :][: classes // 2] for label in pair}
        assert len(used_now) == 2 * (classes // 2)
    assert SHIFTS["class-pairs"].outputs(used) == 2
    assert SHIFTS["class-pairs"].tasks(used) == math.inf
    assert SHIFTS["class-pairs"].tasks(dataclasses.replace(used, classes=1)) == 0


@given(
    members=st.integers(1, 3),
    count=st.integers(0, 4),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_seen_is_indexing(members, count, channels, size):
    rng = np.random.default_rng(members + 10 * count)
    images = torch.from_numpy(rng.integers(256, size=(members, count, channels, *size), dtype=np.uint8))
    pixels = torch.from_numpy(np.stack([rng.permutation(size[0] * size[1]) for _ in range(members)]))
    expected = images.clone()
    for member, position in itertools.product(range(members), range(size[0] * size[1])):
        source = int(pixels[member, position])
        to, source = divmod(position, size[1]), divmod(source, size[1])
        expected[member, :, :, to[0], to[1]] = images[member, :, :, source[0], source[1]]
    assert torch.equal(seen(images, pixels), expected)
    assert seen(images, None) is images


# Names.


def test_a_shift_by_name(data):
    assert shifts.find("label-flip") is SHIFTS["label-flip"]
    found = shifts.find("support.extensions:rolled_labels")
    assert found.task(data, 0, 2).classes.tolist() == [19, 20, *range(19)]
    assert (found.outputs(data), found.tasks(data)) == (CLASSES, float("inf"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("label-flop", r"expected a shift or package.module:function, got 'label-flop': did you mean 'label-flip'\?"),
        ("nowhere:task", "expected package.module:function, got 'nowhere:task'"),
        ("math:pi", "expected a function, got float at 'math:pi'"),
    ],
)
def test_unknown_shifts(name, expected):
    with pytest.raises(ValueError, match=expected):
        shifts.find(name)


@pytest.mark.parametrize(
    "change",
    [{"labels": torch.arange(-1, 119).clamp(max=20)}, {"labels": torch.arange(120)}, {"classes": torch.arange(21) - 2}],
)
def test_labels_outside_of_the_networks_outputs_are_refused(change, data):
    task = replace(random_labels(data, 0, 0), **{"labels": None} | change)
    with pytest.raises(ValueError, match="expected labels from 0 to 20 from the shift mine, got"):
        shifts.check_task(task, data, CLASSES, "mine")


# Streams of random numbers.


def test_the_streams_never_change():
    data = digits()
    expected = {
        "random-labels": [6, 2, 0, 0, 7, 3],
        "drifting-labels": [7, 8, 9, 1, 1, 9],
        "pixel-permutation": [6, 45, 23, 7, 24, 39],
        "sampled-pixel-permutation": [6, 45, 23, 7, 24, 39],
        "compounding-pixel-permutation": [29, 39, 8, 53, 60, 18],
        "drifting-pixels": [0, 1, 2, 3, 4, 22],
        "label-flip": [5, 3, 9, 0, 8, 2],
        "compounding-label-flip": [5, 9, 2, 7, 8, 3],
        "class-pairs": [-1, -1, -1, 0, -1, 1],
    }
    tasks = {name: SHIFTS[name].task(data, 1, 2) for name in expected}
    parts = {
        name: next(part for part in (task.labels, task.pixels, task.classes) if part is not None)
        for name, task in tasks.items()
    }
    assert {name: part[:6].tolist() for name, part in parts.items()} == expected
    assert SHIFTS["class-incremental"].task(data, 1, 0).classes.tolist() == [0, -1, 2, -1, -1, -1, 6, -1, 8, 9]
    assert random_labels(data, 0, 0).labels[:12].tolist() == [4, 0, 1, 0, 0, 0, 6, 8, 4, 2, 9, 3]
    assert batch_order(10, 4, 2, seed=0, task=0).tolist() == [[5, 9, 6, 0], [3, 2, 1, 8], [2, 9, 5, 8], [4, 1, 3, 7]]


def test_the_numbers_of_the_streams_never_change():
    assert {stream.name: stream.value for stream in Stream} == {
        "LABELS": 1,
        "ORDER": 2,
        "PIXELS": 3,
        "FLIP": 4,
        "CLASSES": 5,
        "PAIRS": 6,
        "PHASES": 7,
        "PROBE": 8,
        "SAMPLE": 9,
        "ACTOR": 11,
        "CRITIC": 12,
        "EPISODE": 13,
        "EXPLORATION": 14,
        "MINIBATCH": 15,
        "RESET": 16,
        "EVALUATION": 17,
        "PRIMING": 18,
        "INSIDE": 19,
        "RANDOM_POLICY": 20,
        "CHANGE": 21,
    }


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
    orders = [batch_order(100, 10, 3, seed, task).view(3, -1) for seed in range(4) for task in range(5)]
    assert len({tuple(epoch.tolist()) for order in orders for epoch in order}) == 3 * len(orders)


def test_what_is_left_out_differs_by_epoch():
    left_out = [set(range(10)) - set(epoch.tolist()) for epoch in batch_order(10, 4, 20, seed=0, task=0).view(20, -1)]
    assert set.union(*left_out) == set(range(10))


def test_fewer_epochs_are_the_start_of_more():
    assert torch.equal(batch_order(10, 3, 5, seed=0, task=1)[:6], batch_order(10, 3, 2, seed=0, task=1))
