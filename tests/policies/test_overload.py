"""When a queue is overloaded, and which callers still have time: the arithmetic alone."""

from __future__ import annotations

import math

import pytest

from poolkit.policies.overload import AT_HEAD, CHECK, LAST, MEMORY, PATIENT, PERIOD, Evidence, Trial

INTERVAL, SHARE = 0.1, 0.05


class Queue:
    """Callers that leave a queue that stands since the time 0, ten in a tenth of a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.left = 0
        self.queued_at = 0.0
        self.evidence = Evidence(0, 0.0)

    def pass_by(self, served: int, gave_up: int = 0, age: float | None = 0.05, *, at_head: bool = False) -> None:
        for number in range(served + gave_up):
            self.now += 0.01
            self.left += 1
            if number >= served:
                self.evidence.gave_up(age, self.left, self.queued_at, self.now, INTERVAL, at_head=at_head)

    @property
    def begins(self) -> bool:
        return self.evidence.begins(self.now, 2, interval=INTERVAL, share=SHARE)

    def ends(self, queued_at: float | None = None) -> bool:
        at = self.queued_at if queued_at is None else queued_at
        self.evidence.note(self.left, at, self.now)
        return self.evidence.ends(self.now, at, 2, interval=INTERVAL, share=SHARE)


def test_a_queue_that_stands_while_many_give_up_is_overloaded() -> None:
    queue = Queue()
    for _ in range(10):
        queue.pass_by(7, 3)
    assert queue.begins


@pytest.mark.parametrize("of_a_hundred", [1, 3, 5])
def test_a_few_in_a_hundred_change_nothing_however_long_the_queue_stands(of_a_hundred: int) -> None:
    queue = Queue()
    for _ in range(200):
        queue.pass_by(100 - of_a_hundred, of_a_hundred)
        assert not queue.begins


def test_a_few_of_the_first_callers_are_chance() -> None:
    queue = Queue()
    queue.pass_by(10, 5)
    assert not queue.begins


def test_a_queue_that_has_only_begun_to_stand_is_not_overloaded() -> None:
    queue = Queue()
    queue.pass_by(50, 20)
    assert queue.begins
    queue.evidence.stood_at = queue.now - INTERVAL
    assert not queue.begins


def test_one_batch_of_long_leases_is_no_standing_queue() -> None:
    queue = Queue()
    queue.pass_by(1, 20)
    assert queue.evidence.hold(20) > 1.0
    assert not queue.evidence.begins(queue.now, 20, interval=INTERVAL, share=SHARE)


def test_where_nobody_is_served_no_order_is_better_than_another() -> None:
    queue = Queue()
    queue.pass_by(0, 100)
    assert queue.evidence.hold(2) == math.inf
    assert not queue.begins


def test_who_gives_up_just_before_its_turn_counts_for_one_that_gives_up_just_after_it() -> None:
    queue = Queue()
    queue.pass_by(10, 1, at_head=True)
    assert queue.evidence.lost == AT_HEAD
    assert queue.evidence.hold(2) == pytest.approx(2 * 0.11 / 10)


def test_one_who_gives_up_in_its_lease_was_served_already() -> None:
    queue = Queue()
    queue.pass_by(10)
    queue.evidence.gave_up(None, queue.left, 0.0, queue.now, INTERVAL)
    assert queue.evidence.ended == 10
    assert queue.evidence.lost == 1
    assert queue.evidence.hold(2) == pytest.approx(2 * 0.1 / 10)


def test_what_was_long_ago_is_forgotten() -> None:
    queue = Queue()
    for _ in range(10):
        queue.pass_by(7, 3)
    queue.now += 20 * INTERVAL
    queue.queued_at = queue.now - INTERVAL / 2
    queue.pass_by(0, 1)
    assert queue.evidence.lost == queue.evidence.ended == 1
    assert queue.evidence.stood_at == queue.queued_at


def test_a_short_break_is_part_of_the_overload_and_a_longer_one_begins_anew() -> None:
    queue = Queue()
    queue.pass_by(7, 3)
    queue.queued_at = queue.now + INTERVAL / 2  # many gave up at once
    queue.pass_by(10, 1)
    assert queue.evidence.stood_at == 0.0
    queue.queued_at = queue.now + 2 * INTERVAL
    queue.now = queue.queued_at
    queue.pass_by(10, 1)
    assert queue.evidence.stood_at == queue.queued_at
    assert queue.evidence.lost > 2


def test_evidence_fades_with_the_callers_that_come_after_it() -> None:
    queue = Queue()
    queue.pass_by(0, 1)
    queue.left += int(MEMORY)
    queue.evidence.note(queue.left, 0.0, queue.now)
    assert queue.evidence.lost == pytest.approx(1 / math.e)
    assert queue.evidence.ended == pytest.approx(MEMORY + 1 / math.e)


def test_an_overload_is_over_when_none_of_the_last_callers_gave_up() -> None:
    queue = Queue()
    queue.pass_by(100, 100)
    assert not queue.ends()
    queue.pass_by(int(LAST / SHARE))
    assert not queue.ends()
    queue.pass_by(1)
    assert queue.ends()


def test_an_overload_is_over_when_few_give_up() -> None:
    queue = Queue()
    queue.pass_by(100, 100)
    for _ in range(15):
        queue.pass_by(99, 1)
    assert queue.ends()


def test_an_overload_is_over_when_the_queue_was_empty_and_nobody_has_given_up_since() -> None:
    queue = Queue()
    queue.pass_by(50, 50)
    queue.now += INTERVAL
    assert not queue.ends(math.inf), "five leases take longer"
    queue.now += 4 * INTERVAL
    assert not queue.ends()
    assert queue.ends(math.inf)
    assert queue.ends(queue.now - INTERVAL)


def test_the_age_at_which_callers_begin_to_give_up_is_found_and_followed() -> None:
    queue = Queue()
    ages = [0.05 + 0.001 * (37 * number % 100) for number in range(3000)]
    for age in ages:
        queue.pass_by(1, 1, age)
    assert 0.05 < queue.evidence.low < 0.06
    assert queue.evidence.patient == pytest.approx(PATIENT * 0.149, rel=0.05)
    for age in ages:
        queue.pass_by(1, 1, 2 * age)
    assert 0.1 < queue.evidence.low < 0.12


def test_young_is_who_has_time_for_a_lease() -> None:
    queue = Queue()
    for _ in range(50):
        queue.pass_by(9, 1, 0.1)
    hold = queue.evidence.hold(2)
    assert queue.evidence.young(2) == pytest.approx(queue.evidence.low - 1.3 * hold)
    assert queue.evidence.young(200) == 0.0


class Rivals:
    """Two choices, with what each of them brings in a period of 0.1 s: callers served, and those who gave up then."""

    def __init__(self, young: tuple[int, int], older: tuple[int, int]) -> None:
        self.trial = Trial()
        self.brings = young, older
        self.chosen: list[int] = []
        self.now = 0.0

    def run(self, periods: int) -> list[int]:
        for _ in range(periods):
            self.trial.choose(self.now, hold=0.1 / PERIOD)
            self.chosen.append(self.trial.choice)
            served, cut = self.brings[self.trial.choice]
            self.trial.note(served, cut, 0.1)
            self.now += 0.1
        return self.chosen


def test_young_callers_that_have_time_need_no_trial() -> None:
    assert not any(Rivals((100, 9), (300, 0)).run(50))


def test_where_the_young_give_up_too_the_choice_that_answers_more_is_found() -> None:
    better = Rivals((100, 20), (150, 40)).run(100)
    assert better[:5] == [0, 1, 0, 1, 0], "the first choice, then each in turn"
    assert sum(better[5:]) > 80
    assert 0 in better[-CHECK:], "the other is looked at now and then"
    worse = Rivals((100, 20), (100, 40)).run(100)
    assert sum(worse[5:]) < 20
    assert 1 in worse[-CHECK:]


def test_when_the_leases_change_the_other_choice_is_found() -> None:
    rivals = Rivals((100, 20), (150, 40))
    rivals.run(40)
    rivals.brings = (200, 30), (150, 40)
    rivals.run(60)
    assert sum(rivals.chosen[-16:]) <= 4


def test_the_other_choice_is_as_old_as_callers_are_when_they_begin_to_give_up() -> None:
    queue = Queue()
    queue.evidence.trial = Trial()
    for _ in range(50):
        queue.pass_by(9, 1, 0.1)
    assert queue.evidence.young(2) < queue.evidence.low
    queue.evidence.trial.choice = 1
    assert queue.evidence.young(2) == queue.evidence.low
