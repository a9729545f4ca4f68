"""The replay buffer against a plain list."""

from types import SimpleNamespace

import numpy as np
import pytest

from supple.rl.replay import Replay
from supple.runs.resume import ChangedDataError


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
    batch = replay.sample(generators(), updates=4, size=10)
    assert batch.observation.shape == (4, 2, 10, 2)
    assert batch.reward.shape == (4, 2, 10)
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
    state, expected = first.state_dict(), first.sample(generators(3), 4, 6)
    for step in range(12, 12 + spare):  # written, and lost
        first.add(*(part * 0 - 1 for part in transition(step)))
    second = Replay(2, 5, 2, 1, spare=spare, path=path)
    second.load_state_dict(state)
    for mine, theirs in zip(second.sample(generators(3), 4, 6), expected, strict=True):
        assert (mine == theirs).all()


def flip(content):
    """One bit of the last step's row of the second member changes: 14 steps in 8 rows, 7 numbers each."""
    content[4 * 7 * (8 + 13 % 8) + 9] ^= 1 << 5


def exchange(content):
    """The rows of the last two steps change places, in both members."""
    for member in (0, 224):
        first, second = (slice(member + 28 * (step % 8), member + 28 * (step % 8 + 1)) for step in (12, 13))
        content[first], content[second] = content[second], content[first]


DAMAGES = {
    "steps exchanged": exchange,
    "lost": lambda content: content.clear(),
    "cut short": lambda content: content.__delitem__(slice(len(content) * 2 // 3, None)),
    "a bit flipped": flip,
    "zeros": lambda content: content.__setitem__(slice(None), bytes(len(content))),
    "moved": lambda content: content.__setitem__(slice(None), content[28:] + content[:28]),
    "members exchanged": lambda content: content.__setitem__(slice(None), content[224:] + content[:224]),
}


def saved(path, drop_at=None, start=0):
    """The state after 14 steps in 5 + 3 rows, with one more step behind it."""
    replay = Replay(2, 5, 2, 1, spare=3, path=path)
    for step in range(14):
        if step == drop_at:
            replay.drop()
        replay.add(*transition(start + step))
    state = replay.state_dict()
    replay.add(*transition(start + 14))
    return state


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("drop_at", [None, 12])
def test_a_file_that_has_changed_is_noticed(damage, drop_at, tmp_path):
    path = tmp_path / "replay"
    state, content = saved(path, drop_at=drop_at), bytearray(path.read_bytes())
    Replay(2, 5, 2, 1, spare=3, path=path).load_state_dict(state)
    DAMAGES[damage](content)
    path.write_bytes(content)
    changed = Replay(2, 5, 2, 1, spare=3, path=path)
    with pytest.raises(ChangedDataError, match="expected the replay buffer"):
        changed.load_state_dict(state)
    assert (len(changed), changed.count) == (0, 0), "nothing is changed"


def test_the_buffer_of_another_run_is_noticed(tmp_path):
    mine = saved(tmp_path / "mine")
    saved(tmp_path / "theirs", start=1)
    with pytest.raises(ChangedDataError):
        Replay(2, 5, 2, 1, spare=3, path=tmp_path / "theirs").load_state_dict(mine)


def test_what_can_not_be_drawn_may_change(tmp_path):
    """Bytes behind the end, and rows that are no longer counted, or not yet."""
    path = tmp_path / "replay"
    state = saved(path)
    content = bytearray(path.read_bytes())
    for member in range(2):
        for step in (6, 7, 8):
            place = 28 * (8 * member + step % 8)
            content[place : place + 28] = bytes(28)
    path.write_bytes(content + b"more")
    again = Replay(2, 5, 2, 1, spare=3, path=path)
    again.load_state_dict(state)
    assert path.stat().st_size == len(content)
    assert sorted(set(again.sample(generators(), 20, 10).observation[:, 0, :, 0].flatten().tolist())) == [*range(9, 14)]


def test_the_latest():
    batch = filled(13).latest(3)
    assert batch.observation[1, :, 0].tolist() == [1010, 1011, 1012]


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    path = tmp_path / "replay.bin"
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match=r"expected 28 MB of free disk .*replay\.bin, got 0 MB"):
        Replay(1, 1_000_000, 2, 1, path=path)
    assert path.stat().st_size == 0
    Replay(1, 100, 2, 1, path=path)


def test_rows_on_the_disk_need_no_more_room(tmp_path, monkeypatch):
    path = tmp_path / "replay.bin"
    replay = Replay(1, 1_000, 2, 1, path=path)
    for step in range(1_000):
        replay.add(*transition(step, members=1))
    replay.flush()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    Replay(1, 1_000, 2, 1, path=path)
