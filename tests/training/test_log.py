import json
import signal
import threading
import time

import pytest
import torch

from profusion_pipeline.training.log import StopSignal, TrainingLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_tells_the_mean_loss_and_the_speed(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl", first_step=0)
    for loss in (1.0, 2.0, 6.0):
        log.note(torch.tensor(loss), learning_rate=0.1 * loss)
    time.sleep(0.1)
    with log.time_out():
        time.sleep(0.4)
    line = log.write(samples_per_step=8)
    assert lines(tmp_path / "log.jsonl") == [line]
    assert (line["step"], line["loss"], line["learning_rate"]) == (3, 3.0, pytest.approx(0.6))
    assert 80 < line["images_per_second"] < 240  # 24 pictures in 0.1 s, or a little more; not in 0.5 s
    log.note(torch.tensor(7.0), learning_rate=0.1)
    assert log.write(samples_per_step=8)["loss"] == 7.0
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [3, 4]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)))
    log = TrainingLog(path, first_step=4)
    log.note(torch.tensor(1.0), learning_rate=0.1)
    log.write(samples_per_step=1)
    assert [line["step"] for line in lines(path)] == [2, 4, 5]


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 2}\n{"step": 4, "lo')
    TrainingLog(path, first_step=4)
    assert path.read_text() == '{"step": 2}\n'


def test_a_line_tells_of_every_step_since_the_last_one_across_a_resume(tmp_path):
    log = TrainingLog(tmp_path / "log.jsonl", first_step=4, losses=[1.0, 2.0])
    log.note(torch.tensor(6.0), learning_rate=0.1)
    assert log.check() == [1.0, 2.0, 6.0]
    time.sleep(0.1)
    line = log.write(samples_per_step=8)
    assert (line["step"], line["loss"]) == (5, 3.0)
    assert line["images_per_second"] < 80  # of the one step that this process has taken
    assert log.check() == []


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_loss_names_its_step(tmp_path, broken):
    log = TrainingLog(tmp_path / "log.jsonl", first_step=10)
    for loss in (1.0, 2.0, broken, 1.0):
        log.note(torch.tensor(loss), learning_rate=0.1)
    for look in (log.check, lambda: log.write(samples_per_step=1)):
        with pytest.raises(FloatingPointError, match=f"The loss of step 13 must be finite, got {broken}"):
            look()
    assert not (tmp_path / "log.jsonl").exists()


def test_processes_average_and_only_one_writes():
    log = TrainingLog(None, first_step=0, average=lambda losses: losses / 2)
    log.note(torch.tensor(4.0), learning_rate=0.1)
    assert log.check() == [2.0]
    assert log.write(samples_per_step=1)["loss"] == 2.0
    assert log.check() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_raised_again_at_the_end(number):
    heard = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with StopSignal() as stop:
            assert stop.received is None
            signal.raise_signal(number)
            assert stop.received == number
            assert heard == []
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_an_error_is_not_hidden_by_a_signal():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is before  # a second Ctrl-C works as usual
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_get_no_signals():
    seen = []

    def work():
        with StopSignal() as stop:
            seen.append(stop.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
