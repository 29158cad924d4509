"""Processes that work, fail, are killed, and are orphaned."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest

from raypipe.data.conversion.processes import ProcessDiedError, run_in_processes


def double(task, report):
    report(task)
    return 2 * task, os.getpid()


def fail(task, report):
    if task == 3:
        raise ValueError("task 3 is wrong")
    return task


def kill(task, report):
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def tell(task, report):
    report(os.getpid())
    return task


def sleep(path, report):
    path.write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)
        report(1)


def wait_for(what, seconds=60):
    """Not that of raytools: the processes import this module, and torch would take them seconds."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_task_is_done_once():
    told = []
    results = dict(run_in_processes(double, list(range(20)), 2, told.append))
    assert {task: result for task, (result, _) in results.items()} == {i: 2 * i for i in range(20)}
    assert sorted(told) == list(range(20))
    pids = {pid for _, pid in results.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not any(map(alive, pids))


def test_what_a_task_raises_is_raised():
    with pytest.raises(ValueError, match="task 3 is wrong"):
        list(run_in_processes(fail, list(range(9)), 2, lambda n: None))


def test_a_killed_process_is_noticed():
    with pytest.raises(ProcessDiedError, match="killed by SIGKILL") as error:
        list(run_in_processes(kill, list(range(9)), 2, lambda n: None))
    assert error.value.task == 3


def test_a_worker_that_is_killed_between_two_tasks_is_named_with_the_next():
    def kill_once_idle(pid):
        time.sleep(0.5)  # the result is sent by then
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid))

    with pytest.raises(ProcessDiedError, match="killed by SIGKILL") as caught:
        list(run_in_processes(tell, [0, 1], 1, kill_once_idle))
    assert caught.value.task == 1


def test_leaving_early_stops_them_in_the_middle(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]

    class StopError(Exception):
        pass

    def stop(amount):
        if all(path.exists() for path in paths):
            raise StopError

    with pytest.raises(StopError), closing(run_in_processes(sleep, paths, 2, stop)) as results:
        list(results)
    assert not any(alive(int(path.read_text())) for path in paths)


def test_orphans_end_by_themselves(tmp_path):
    code = f"""
        from pathlib import Path
        from raypipe.data.conversion.processes import run_in_processes
        from tests.data.conversion.test_processes import sleep
        if __name__ == "__main__":
            list(run_in_processes(sleep, [Path({str(tmp_path)!r}) / n for n in "ab"], 2, lambda n: None))
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(code))
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        wait_for(lambda: all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in "ab"))
    finally:
        parent.kill()
        parent.wait()
    pids = [int((tmp_path / n).read_text()) for n in "ab"]
    wait_for(lambda: not any(map(alive, pids)), 20)
