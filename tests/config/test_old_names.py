"""Files and flags with the old names of the settings of search stages: `search.flow_trials`, axes in `search.flow`."""

import json

import pytest
import yaml

from raypipe import cli, config
from raypipe.config import Axis, ConfigError, Experiment, from_dict, load, replace, stated
from raypipe.config.old_names import STAGES

AXES = {"train.loss": {"choices": ["nll", "mse"]}, "train.noise_std": {"low": 0.02, "high": 0.3, "log": True}}
OLD = {
    "name": "x",
    "search": {
        **{"flow_trials": 4, "flow_steps": 60, "flow_refit_steps": 90, "flow": AXES},
        **{"denoiser_trials": 2, "denoiser": {}},
        **{"diffusion_steps": 50, "rungs": 1},
    },
}
NEW = {
    "name": "x",
    "search": {
        "flow": {"trials": 4, "steps": 60, "refit_steps": 90, "axes": AXES},
        "denoiser": {"trials": 2, "axes": {}},
        "diffusion": {"steps": 50},
        "rungs": 1,
    },
}


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
def test_a_file_with_old_names_is_read_as_one_with_the_current_ones(tmp_path, dump):
    old, new = write(tmp_path / "old.yaml", dump(OLD)), write(tmp_path / "new.yaml", dump(NEW))
    assert load(old) == load(new) == from_dict(OLD) == from_dict(NEW)
    assert stated(old) == stated(new)
    flow, denoiser, diffusion, _ = load(old).search.stages.values()
    assert (flow.trials, flow.steps, flow.refit_steps) == (4, 60, 90)
    assert flow.axes["train.loss"] == Axis(choices=["nll", "mse"])
    assert (denoiser.trials, denoiser.axes) == (2, {})
    assert diffusion == replace(Experiment(), **{"search.diffusion.steps": 50}).search.diffusion


def test_a_stored_config_with_old_names_is_read_exactly():
    """As `config.to_dict` wrote it: every field of every stage, so that no default is used."""
    values = {
        f"search.{stage}.{name}": 10 * i + j
        for i, stage in enumerate(STAGES, 1)
        for j, name in enumerate(("trials", "steps", "refit_steps"))
    }
    experiment = replace(
        Experiment(), **values, **{"search.diffusion.axes": AXES | {"train.loss": {"choices": ["nll"]}}}
    )
    tree = config.to_dict(experiment)
    for stage in STAGES:
        settings = tree["search"].pop(stage)
        tree["search"][stage] = settings.pop("axes")
        tree["search"] |= {f"{stage}_{name}": value for name, value in settings.items()}
    assert len(tree["search"]) == len(config.to_dict(experiment)["search"]) + 9
    before = json.dumps(tree)
    assert from_dict(tree) == experiment
    assert json.dumps(tree) == before


@pytest.mark.parametrize("given", [{"flow": {}}, {"flow": {"trials": 2}}, {"flow": {"axes": AXES}, "denoiser": {}}])
def test_a_stage_that_is_stated_in_part_keeps_its_other_defaults(given):
    experiment, default = from_dict({"search": given}), Experiment()
    expected = {f"search.{stage}.{name}": value for stage, part in given.items() for name, value in part.items()}
    assert experiment == replace(default, **expected)
    assert config.differences(experiment, default).keys() == expected.keys()


@pytest.mark.parametrize(
    "search",
    [
        {"flow_trials": 4, "flow": {"steps": 60, **AXES}},
        {"flow_trials": 4, "flow": {"trials": 4, "steps": 60, "axes": AXES}},
        {"flow": {"trials": 4, "steps": 60, "axes": AXES, **AXES}},
    ],
)
def test_both_names_in_one_file_may_agree(search):
    expected = {"search.flow.trials": 4, "search.flow.steps": 60, "search.flow.axes": AXES}
    assert from_dict({"search": search}) == replace(Experiment(), **expected)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"flow_trials": 4, "flow": {"trials": 5}},
            "search.flow_trials is the old name of search.flow.trials, and the two have different values (4 and 5); "
            "remove the old one",
        ),
        (
            {"diffusion_refit_steps": 4, "diffusion": {"refit_steps": 5}},
            "search.diffusion_refit_steps is the old name of search.diffusion.refit_steps, and the two have different "
            "values (4 and 5); remove the old one",
        ),
        (
            {"flow": {"model.depth": {"choices": [1]}, "axes": {"model.depth": {"choices": [2]}}}},
            "search.flow is the old name of search.flow.axes, and the two have different values "
            "({'model.depth': {'choices': [1]}} and {'model.depth': {'choices': [2]}}); remove the old one",
        ),
        # old names with other mistakes
        ({"flow_trials": 0}, "search.flow.trials: must be at least 1, not 0"),
        (
            {"flow_trials": 1, "flow": 3},
            "search.flow: input should be a dictionary or an instance of SearchStage, not 3",
        ),
        (
            {"flow": {"train.noise": {"choices": [1]}}},
            "search.flow.axes: unknown field 'train.noise'; did you mean 'train.noise_std'?",
        ),
        # current names with mistakes
        ({"flow": {"trails": 3}}, "unknown key 'search.flow.trails'; did you mean 'trials'?"),
        ({"flow": {"axis": AXES}}, "unknown key 'search.flow.axis'; did you mean 'axes'?"),
        ({"flo": {"trials": 3}}, "unknown key 'search.flo'; did you mean 'flow'?"),
        ({"flow": {"steps": 0}}, "search.flow.steps: must be at least 1, not 0"),
        ({"denoiser": {"refit_steps": -1}}, "search.denoiser.refit_steps: must be at least 1, not -1"),
        ({"flow": None}, "search.flow: input should be a dictionary or an instance of SearchStage, not None"),
        ({"flow": {"trials": None}}, "search.flow.trials: input should be a valid integer, not None"),
        ({"flow": {1: 2}}, "search.flow.1: keys should be strings, not 1"),
    ],
)
def test_each_mistake_has_its_line(tmp_path, search, message):
    path = write(tmp_path / "c.yaml", yaml.safe_dump({"search": search}))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"


def parsed(*argv):
    args, overrides = cli.parse(cli.experiment_parser("x", ""), argv)
    return cli.experiment(args, overrides)


def test_old_flags_are_accepted():
    old = parsed("--search.flow_trials", "3", "--search.diffusion_refit_steps=7", "--search.flow", json.dumps(AXES))
    values = {"search.flow.trials": 3, "search.diffusion.refit_steps": 7, "search.flow.axes": AXES}
    assert old == parsed(*(text for name, value in values.items() for text in (f"--{name}", json.dumps(value))))
    assert old == replace(Experiment(), **values)
    assert parsed("--search.flow", "{}").search.flow.axes == {}


@pytest.mark.parametrize("flag", ["--search.flow_trials", "--search.flow.trials"])
@pytest.mark.parametrize("content", ["search: {flow_trials: 8}", "search: {flow: {trials: 8}}"])
def test_a_flag_overrides_the_file_whatever_the_names(tmp_path, flag, content):
    path = write(tmp_path / "c.yaml", content)
    assert parsed("--config", str(path), flag, "3").search.flow.trials == 3


def test_help_lists_the_current_names_with_the_defaults_of_each_stage(capsys):
    with pytest.raises(SystemExit):
        cli.experiment_parser("x", "").parse_args(["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    for stage, settings in Experiment().search.stages.items():
        assert f"--search.{stage}.trials number of trials in the stage (default: {settings.trials})" in text
    assert "_trials" not in text
