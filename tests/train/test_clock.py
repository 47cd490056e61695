"""Where the time of a run goes, over several starts."""

import json
import math

import pytest

from tario_jax.train import clock as clock_module
from tario_jax.train.clock import Clock, Ledger


class Time:
    """A wall and a monotonic clock that are turned by hand."""

    def __init__(self):
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def time(monkeypatch) -> Time:
    turned = Time()
    monkeypatch.setattr(clock_module, "time", turned)
    return turned


def spend(clock: Clock, time: Time, **seconds: float) -> None:
    for doing, spent in seconds.items():
        clock.enter(doing)
        time.now += spent


def test_every_second_is_counted_once_under_what_was_done(time):
    clock = Clock()
    time.now += 3
    spend(clock, time, data=1, place=0.5, dispatch=0.5, wait=2, log=0.25, save=1)
    assert clock.seconds() == {"start": 3, "data": 1, "place": 0.5, "dispatch": 0.5, "wait": 2, "log": 0.25, "save": 1}
    assert sum(clock.seconds().values()) == time.now - 1000
    assert clock.since_s() == 1 and time.now - clock.beaten == 1
    clock.beat()
    assert time.now == clock.beaten


@pytest.mark.parametrize(("idle_after_s", "wait", "data"), ((-1, 0, 3), (2, 2, 1), (math.inf, 3, 0)))
def test_a_batch_is_waited_for_only_while_the_device_has_nothing_to_do(time, idle_after_s, wait, data):
    clock = Clock()
    clock.enter("data")
    clock.device_idle_since = lambda: 1000 + idle_after_s
    time.now += 3
    clock.enter("place")
    assert clock.seconds() == {"start": 0, "data": data, "wait": wait, "place": 0}


def test_steps_that_are_done_again_and_the_time_between_are_lost(tmp_path, time):
    """First start: 10 steps of 2 s, a save after 4 and 8, killed. Second: from 8 on, 4 steps of 1 s."""
    path = tmp_path / "goodput.json"
    clock = Clock()
    time.now += 5
    first = Ledger(path, 0, clock)
    assert first.lost_at_last_stop() is None
    for step in range(1, 11):
        spend(clock, time, data=0.5, dispatch=0.5, wait=1.5)
        first.note(step)
        if step in (4, 8):
            spend(clock, time, save=1)
            first.saved(step)
    first.write()
    account = json.loads(path.read_text())
    assert account["goodput"] == pytest.approx(20 / 32) and account["wall_seconds"] == 32
    assert account["lost"] == {"start": 5, "data": 5, "save": 2}

    time.now += 60  # nobody knows of it until the next start
    clock = Clock()
    time.now += 3
    second = Ledger(path, 8, clock)
    assert second.lost_at_last_stop() == (2, 4.0, 60.0)
    for step in range(9, 13):
        spend(clock, time, wait=1)
        second.note(step)
    account = second.account()
    assert account["lost"] == {"start": 8, "data": 5, "save": 2, "repeated": 4, "between starts": 60}
    assert account["goodput"] == pytest.approx((16 + 4) / account["wall_seconds"])
    assert account["wall_seconds"] == 32 + 60 + 3 + 4
    second.write()

    third = Ledger(path, 0, Clock())  # as if all checkpoints were gone
    assert third.lost_at_last_stop()[:2] == (12, 4.0)
    assert third.account()["lost"]["repeated"] == 24 and third.account()["goodput"] == 0


def test_a_rollback_is_counted_as_steps_done_again(tmp_path, time):
    clock = Clock()
    ledger = Ledger(tmp_path / "goodput.json", 0, clock)
    for step in range(1, 7):
        spend(clock, time, wait=1)
        ledger.note(step)
        if step == 4:
            ledger.saved(4)
    ledger.rolled_back(4)
    assert ledger.account()["lost"] == {"repeated": 2}
    for step in (5, 6, 7):
        spend(clock, time, wait=1)
        ledger.note(step)
    assert ledger.account()["goodput"] == pytest.approx(7 / 9)
    ledger.write()
    again = Ledger(tmp_path / "goodput.json", 4, Clock())
    assert again.lost_at_last_stop()[:2] == (3, 3.0)


def test_a_rollback_may_go_back_to_steps_of_an_earlier_start(tmp_path, time):
    """100 steps of 1 s, saves after 50 and 100; the next start does two and goes back to 50, does 52, and is killed."""
    path = tmp_path / "goodput.json"
    clock = Clock()
    first = Ledger(path, 0, clock)
    for step in range(1, 101):
        spend(clock, time, wait=1)
        first.note(step)
        if step % 50 == 0:
            first.saved(step)
    first.write()
    clock = Clock()
    second = Ledger(path, 100, clock)
    spend(clock, time, wait=2)
    second.note(102)
    second.rolled_back(50)
    assert second.account()["lost"] == {"repeated": 52}
    spend(clock, time, wait=52)
    second.note(102)
    assert second.account()["goodput"] == pytest.approx(102 / 154)
    second.write()
    assert Ledger(path, 76, Clock()).lost_at_last_stop()[0] == 26


def test_an_account_that_cannot_be_read_begins_anew(tmp_path, time):
    (tmp_path / "goodput.json").write_text('{"starts": [{"beg')
    assert Ledger(tmp_path / "goodput.json", 3, Clock()).lost_at_last_stop() is None
