"""Searches on recorded learning curves: the record is whole, the simulation loses nothing, and the default pays."""

import json
import statistics

import pytest

from raypipe.search import records
from tests.scripts import load_script

replay = load_script("benchmarks/replay")
search = load_script("benchmarks/search")
record = load_script("benchmarks/record")


@pytest.fixture(scope="module")
def curves():
    return replay.Curves()


def test_the_record_holds_the_whole_grid(curves):
    rows = records.read_rows(replay.RECORDED)
    keys = [(r["noise_std"], r["loss"], r["learning_rate"], r["seed"], r["step"]) for r in rows]
    whole = len(record.NOISE) * len(record.LOSSES) * len(record.RATES) * len(record.SEEDS)
    assert curves.configurations >= 120 and len(curves.seeds) == 3
    assert len(set(keys)) == len(keys) == whole * len(curves.rungs)
    assert all(0.3 < row["objective"] < 3 and row["seconds"] > 0 for row in rows)


def test_a_proposal_goes_the_way_of_the_nearest_training(curves):
    (a, b), loss = record.NOISE[5:7], "mse"
    values = {"train.noise_std": a * 1.05, "train.loss": loss, "train.learning_rate": record.RATES[2] * 0.9}
    exact = {"train.noise_std": a, "train.loss": loss, "train.learning_rate": record.RATES[2]}
    assert curves.of(values, 1) == curves.of(exact, 1) != curves.of(exact | {"train.noise_std": b}, 1)
    zero = exact | {"train.noise_std": 0.0}
    tiny = exact | {"train.noise_std": 1e-4}  # on a log scale the least level above 0 is nearer
    assert curves.of(zero, 0) != curves.of(tiny, 0) == curves.of(exact | {"train.noise_std": record.NOISE[1]}, 0)


@pytest.mark.parametrize("scheduler", ["asha", "halving", "median", "none"])
@pytest.mark.parametrize("workers", [1, 16])
def test_a_simulated_search_ends_every_trial_once(curves, scheduler, workers):
    run = replay.replay(curves, replay.Setting(scheduler=scheduler, trials=18, workers=workers, failures=0.1, seed=3))
    finished = run.trials - run.stopped - run.failed
    assert run.trials == 18 and run.failed > 0 and finished > 0
    assert (run.stopped == 0) == (scheduler == "none")
    longest = run.trials * curves.rungs[-1]
    assert run.steps <= longest and (run.steps < longest or run.stopped + run.failed == 0)
    again = replay.replay(curves, replay.Setting(scheduler=scheduler, trials=18, workers=workers, failures=0.1, seed=3))
    assert again == run


def test_halving_lets_exactly_a_third_go_on(curves):
    run = replay.replay(curves, replay.Setting(scheduler="halving", trials=18, workers=4, rungs=3))
    first, second, last = curves.rungs
    assert run.steps == 18 * first + 6 * (second - first) + 2 * (last - second)
    assert run.stopped == 16


def test_more_workers_take_less_time_and_a_straggler_more(curves):
    def seconds(**more):
        return replay.replay(curves, replay.Setting(sampler="random", scheduler="none", trials=16, **more)).seconds

    one, four, sixteen = (seconds(workers=n) for n in (1, 4, 16))
    assert one / four == pytest.approx(4) and one / sixteen == pytest.approx(16)  # all trials take as long
    assert seconds(stragglers=1.0, slowdown=3.0) == pytest.approx(3 * one)


def test_the_default_search_beats_random_at_the_same_steps(curves):
    """The bounds that the project sets itself; what it reaches stands in experiments/README.md."""
    line = search.against_random(curves, 30, search.TRIALS * curves.rungs[-1])
    assert line["seeds"] == 30 and line["configurations"] >= 120
    assert line["ratio"] < 1
    assert line["steps_ratio"] <= 0.5
    assert line["best"]["mean"] >= line["least_of_the_grid"]  # nothing is better than what there is


def test_lines_and_plot(curves, capsys, tmp_path):
    assert search.main(["--seeds", "4", "--only", "workers", "--plot", str(tmp_path / "search.png")]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    times = [line[str(count)]["seconds"] for count in search.WORKERS]
    assert times == sorted(times, reverse=True) and line["1"]["speedup"] == 1
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_record_there_is_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"--recorded: no file .*; create it with python experiments/benchmarks/record.py"
    ):
        search.main(["--recorded", str(tmp_path / "none.parquet")])


def test_the_steps_to_a_target_are_those_of_the_mean():
    runs = [replay.Run(best=[(100, 1.0, 0.9, 0.9), (300, 3.0, 0.7, 0.7)]), replay.Run(best=[(200, 1.0, 0.8, 0.8)])]
    assert search.steps_to(runs, 0.86, 1000) == 200
    assert search.steps_to(runs, 0.75, 1000) == 300
    assert search.steps_to(runs, 0.7, 1000) is None
    assert search.mean_best(runs, 250) == pytest.approx(statistics.mean([0.9, 0.8]))
