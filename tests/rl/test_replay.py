"""The replay buffer against a plain list."""

import numpy as np
import pytest

from supple.rl.replay import Replay


def transition(step, members=2):
    """Every number says which member and which step it is of."""
    mark = np.arange(members, dtype=np.float32) * 1000 + step
    return (
        np.stack([mark, -mark], 1),
        mark[:, None] / 7,
        mark + 0.5,
        np.full(members, step % 3 == 0),
        np.stack([mark + 1, -mark], 1),
    )


def filled(count, **options):
    replay = Replay(2, 5, 2, 1, **options)
    for step in range(count):
        replay.add(*transition(step))
    return replay


def generators(seed=0):
    return [np.random.default_rng(seed), np.random.default_rng(seed + 1)]


@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("count", [1, 4, 5, 6, 13, 40])
def test_what_comes_out_went_in(count, spare):
    replay = filled(count, spare=spare)
    assert len(replay) == min(count, 5)
    batch = replay.sample(generators(), updates=20, size=10)
    assert batch.observation.shape == (20, 2, 10, 2)
    assert batch.reward.shape == (20, 2, 10)
    for member in range(2):
        steps = batch.observation[:, member, :, 0].flatten().numpy() - 1000 * member
        assert set(steps) == set(range(max(0, count - 5), count)), "all of the last five and no others"
        for position, step in enumerate(steps):
            expected = [part[member] for part in transition(int(step))]
            found = [part[:, member].flatten(0, 1)[position].numpy() for part in batch]
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, np.float32(theirs))


def test_members_draw_for_themselves():
    batch = filled(5).sample(generators(), 1, 50)
    steps = [batch.observation[0, member, :, 0] - 1000 * member for member in range(2)]
    assert (steps[0] != steps[1]).any()
    alone = Replay(1, 5, 2, 1)
    for step in range(5):
        alone.add(*(part[1:] for part in transition(step)))
    assert (alone.sample(generators()[1:], 1, 50).observation[:, 0] == batch.observation[:, 1]).all()


def test_what_a_checkpoint_counts_survives_in_the_file(tmp_path):
    """Killed after the checkpoint, a buffer that had gone round goes on as if it had not been."""
    spare, path = 3, tmp_path / "replay"
    first = filled(12, spare=spare, path=path)
    first.flush()
    expected = first.sample(generators(3), 4, 6)
    for step in range(12, 12 + spare):  # written, and lost
        first.add(*(part * 0 - 1 for part in transition(step)))
    second = Replay(2, 5, 2, 1, spare=spare, path=path)
    second.count = 12
    for mine, theirs in zip(second.sample(generators(3), 4, 6), expected, strict=True):
        assert (mine == theirs).all()


def test_its_size_is_that_of_the_numbers():
    replay = Replay(1, 1000, 78, 12, spare=10)
    assert replay.nbytes == 1010 * (2 * 78 + 12 + 2) * 4


def test_the_latest():
    batch = filled(13).latest(3)
    assert batch.observation[1, :, 0].tolist() == [1010, 1011, 1012]
