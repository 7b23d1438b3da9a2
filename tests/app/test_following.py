import threading

import pytest

from profusion_pipeline.app.following import Turns, following


def test_what_is_said_arrives_as_it_is_said():
    go_on = threading.Event()

    def work(say):
        say(1)
        assert go_on.wait(10)
        say(2)

    said = following(work, threading.Event())
    assert next(said) == 1
    go_on.set()
    assert list(said) == [2]


def test_an_error_arrives_after_what_was_said():
    def work(say):
        say(1)
        raise ValueError("why")

    said = following(work, threading.Event())
    assert next(said) == 1
    with pytest.raises(ValueError, match="why"):
        next(said)


def test_whoever_goes_away_ends_the_work():
    stop, ended = threading.Event(), []

    def work(say):
        say(1)
        assert stop.wait(10)
        ended.append(True)

    said = following(work, stop)
    next(said)
    said.close()
    assert ended == [True]


def test_a_visitor_stops_their_own_work_only():
    turns = Turns()
    mine, yours = turns.begin("me"), turns.begin("you")
    assert turns.stop("me") and mine.is_set() and not yours.is_set()
    turns.end("me")
    assert not turns.stop("me") and not turns.begin("me").is_set()
