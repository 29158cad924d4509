"""Configuration: one line for each mistake, and files that say what they should."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from raypipe import config
from raypipe.config import Axis, ConfigError, Experiment, from_dict, load, override, parse_value, replace, to_dict

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


def refusal(tree: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flow_axis(**axis: object) -> dict:
    return {"search": {"flow": {"axes": {"train.noise_std": axis}}}}


def with_loss(**delta: object) -> dict:
    axes = {"train.loss": {"choices": ["nll", "mse"]}, "sde.delta": {"low": 1e-4, "high": 1e-2} | delta}
    return {"search": {"flow": {"axes": axes}}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trian": {}}, "config: unknown key 'trian'; did you mean 'train'?"),
        ({"train": {"noise_sdt": 1}}, "config: unknown key 'train.noise_sdt'; did you mean 'noise_std'?"),
        ({"train": {"xyzzy": 1}}, "config: unknown key 'train.xyzzy'"),
        ({"train.noise_std": 1}, "config: unknown key 'train.noise_std'; did you mean 'train'?"),
        (flow_axis(hihg=1), "config: unknown key 'search.flow.axes.train.noise_std.hihg'; did you mean 'high'?"),
        ({"train": 3}, "config: train: input should be a dictionary or an instance of Train, not 3"),
        (
            {"train": {"steps": "many"}},
            "config: train.steps: input should be a valid integer, unable to parse string as an integer, not 'many'",
        ),
        ({"name": 5}, "config: name: input should be a valid string, not 5"),
        ({"latents": "disk"}, "config: latents.mode: input should be 'cache' or 'off', not 'disk'"),
        (
            {"train": {"component": "f"}},
            "config: train.component: input should be 'flow', 'denoiser', 'diffusion' or 'joint', not 'f'",
        ),
        (
            {"train": {"learning_rate": float("inf")}},
            "config: train.learning_rate: input should be a finite number, not inf",
        ),
        ({"train": {"noise_std": float("nan")}}, "config: train.noise_std: input should be a finite number, not nan"),
        ({"train": {"noise_std": -0.1}}, "config: train.noise_std: must be at least 0, not -0.1"),
        ({"train": {"learning_rate": 0}}, "config: train.learning_rate: must be above 0, not 0.0"),
        ({"train": {"steps": 0}}, "config: train.steps: must be at least 1, not 0"),
        ({"train": {"warmup_steps": -1}}, "config: train.warmup_steps: must be at least 0, not -1"),
        ({"model": {"dropout": 1}}, "config: model.dropout: must be from 0 to below 1, not 1.0"),
        ({"model": {"logit_range": [1, -9]}}, "config: model.logit_range: must be [low, high], not (1.0, -9.0)"),
        ({"sde": {"zero_share": 1.5}}, "config: sde.zero_share: must be from 0 to 1, not 1.5"),
        ({"dataset": {"image_size": 60}}, "config: dataset.image_size: must be a multiple of 8, at least 16, not 60"),
        ({"dataset": {"cache_gb": 0}}, "config: dataset.cache_gb: must be above 0, not 0.0"),
        ({"dataset": {"stall_seconds": -1}}, "config: dataset.stall_seconds: must be above 0, not -1.0"),
        ({"name": "a/b"}, "config: name: must be made of letters, digits, '.', '_' and '-', not 'a/b'"),
        ({"evaluation": {"members": 1}}, "config: evaluation.members: must be at least 2, not 1"),
        ({"evaluation": {"solvers": []}}, "config: evaluation.solvers: must be a list of at least one solver, not []"),
        (
            {"evaluation": {"solvers": ["euler"]}},
            "config: evaluation.solvers.0: input should be 'euler_maruyama', 'milstein' or 'heun_drift', not 'euler'",
        ),
        ({"evaluation": {"batch_size": 0}}, "config: evaluation.batch_size: must be at least 1, not 0"),
        (
            {"evaluation": {"steps": []}},
            "config: evaluation.steps: must be a list of one or more positive integers, not []",
        ),
        ({"search": {"reduction_factor": 1}}, "config: search.reduction_factor: must be at least 2, not 1"),
        # rules over more than one field
        (
            {"train": {"component": "denoiser", "loss": "mse"}},
            "config: train.loss: must be left out for a denoiser, not 'mse'",
        ),
        (
            {"train": {"component": "flow", "loss": "regression"}},
            "config: train.loss: must be nll or mse for a flow, not 'regression'",
        ),
        (
            {"train": {"batch_size": 16, "num_workers": 3}},
            "config: train.batch_size: must be a multiple of train.num_workers (3), not 16",
        ),
        (
            {"model": {"inner_dim": 64, "num_heads": 3}},
            "config: model.inner_dim: must be even and a multiple of model.num_heads (3), not 64",
        ),
        (
            {"dataset": {"color_jitter": True}},
            "config: latents.mode: must be off if dataset.color_jitter is set, not 'cache'",
        ),
        (
            {"dataset": {"time_reversal": True}, "latents": "off"},
            "config: latents.mode: must be cache if dataset.time_reversal is set, not 'off'",
        ),
        ({"dataset": {"num_frames": 4}}, "config: dataset.num_frames: must be above model.num_input_frames (4), not 4"),
        (
            {"evaluation": {"horizon": 9}},
            "config: evaluation.horizon: must be at most dataset.num_frames - model.num_input_frames (8), not 9",
        ),
        # searched axes
        (
            flow_axis(choices=[0.1], low=0.1, high=0.2),
            "config: search.flow.axes.train.noise_std: must be either `choices` or `low` and `high`, "
            "not ['choices', 'low', 'high']",
        ),
        (
            flow_axis(choices=[0.1], low=0.1),
            "config: search.flow.axes.train.noise_std: must be either `choices` or `low` and `high`, "
            "not ['choices', 'low']",
        ),
        (flow_axis(), "config: search.flow.axes.train.noise_std: must be either `choices` or `low` and `high`, not []"),
        (
            flow_axis(low=0.1),
            "config: search.flow.axes.train.noise_std: must be either `choices` or `low` and `high`, not ['low']",
        ),
        (flow_axis(choices=[]), "config: search.flow.axes.train.noise_std.choices: must be at least one value, not []"),
        (flow_axis(low=2, high=1), "config: search.flow.axes.train.noise_std.low: must be below high (1.0), not 2.0"),
        (
            flow_axis(low=0, high=1, log=True),
            "config: search.flow.axes.train.noise_std.low: must be above 0 on a log scale, not 0.0",
        ),
        (
            {"search": {"flow": {"axes": {"train.noise": {"choices": [1]}}}}},
            "config: search.flow.axes: unknown field 'train.noise'; did you mean 'train.noise_std'?",
        ),
        (flow_axis(low=-1, high=1), "config: search.flow.axes: train.noise_std: must be at least 0, not -1.0"),
        (
            {"search": {"diffusion": {"axes": {"train.loss": {"choices": ["mse"]}}}}},
            "config: search.diffusion.axes: train.loss: must be regression, nll, crps_energy, crps or energy for a "
            "diffusion, not 'mse'",
        ),
        (
            {"search": {"flow": {"axes": {"evaluation.windows": {"choices": [8, 64]}}}}},
            "config: search.flow.axes: 'evaluation.windows' must be the same in all trials, so that they are "
            "comparable; axes can be evaluation.steps, evaluation.solvers, fields of sde, and most of model and train",
        ),
        (
            flow_axis(low=0.1, high=0.2, when={"model.depth": 1}),
            "config: search.flow.axes: train.noise_std: when: must be an axis of this stage that has `choices` and no "
            "`when`, not 'model.depth'",
        ),
        (
            with_loss(when={"train.loss": "huber"}),
            "config: search.flow.axes: sde.delta: when: train.loss: must be among ['nll', 'mse'], not ['huber']",
        ),
        (
            with_loss(low=0.0, when={"train.loss": "nll"}),
            "config: search.flow.axes: sde.delta: must be above 0, not 0.0",
        ),
        # objectives
        (
            {"search": {"objectives": ["nfe_per_frame"]}},
            "config: search.objectives: must be [crps_ratio] or [crps_ratio, nfe_per_frame], not ['nfe_per_frame']",
        ),
        (
            {"search": {"objectives": ["crps_ratio", "nfe_per_frame"]}},
            "config: search.scheduler: must be none with two objectives, unless search.rungs is 1, not 'asha'",
        ),
    ],
)
def test_each_mistake_has_its_line(tree, message):
    assert refusal(tree) == message


def test_an_axis_may_hold_what_its_stage_takes():
    """A diffusion's losses are checked as a diffusion's, though the config is of a flow."""
    e = from_dict({"search": {"diffusion": {"axes": {"train.loss": {"choices": ["regression", "nll"]}}}}})
    assert e.search.diffusion.axes["train.loss"] == Axis(choices=["regression", "nll"])


@pytest.mark.parametrize(
    ("text", "mode"), [("off", "off"), ("cache", "cache"), ("'off'", "off"), ("{mode: 'off'}", "off")]
)
def test_latents_in_short(tmp_path, text, mode):
    path = tmp_path / "c.yaml"
    path.write_text(f"latents: {text}\n")
    assert load(path).latents.mode == mode


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "+1e-04", "0.0001", "1.e-4"])
def test_numbers_with_an_exponent(tmp_path, text):
    """PyYAML reads 1e-4 as a string; also among the choices of an axis, where nothing else would notice."""
    path = tmp_path / "c.yaml"
    path.write_text(
        f"train: {{learning_rate: {text}}}\n"
        f"search: {{flow: {{axes: {{train.learning_rate: {{choices: [{text}, 1e-3]}}}}}}}}\n"
    )
    experiment = load(path)
    assert experiment.train.learning_rate == 1e-4
    assert experiment.search.flow.axes["train.learning_rate"].choices == [1e-4, 1e-3]
    assert parse_value(text) == 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("true", True), ("null", None), ("nll", "nll"), ("[1, 1e-1]", [1, 0.1]), ("a: [", "a: ["), ("1e", "1e")],
)
def test_command_line_values(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_override_by_dotted_names():
    tree = {"train": {"steps": 5}}
    changed = override(tree, {"train.noise_std": 0.3, "model.inner_dim": 32, "name": "x"})
    assert changed == {"train": {"steps": 5, "noise_std": 0.3}, "model": {"inner_dim": 32}, "name": "x"}
    assert tree == {"train": {"steps": 5}}
    with pytest.raises(ConfigError, match=r"unknown key 'train.noise'; did you mean 'noise_std'\?"):
        from_dict(override({}, {"train.noise": 1}))


def test_overrides_beat_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {noise_std: 0.2, steps: 7}\nlatents: off\n")
    experiment = load(path, {"train.noise_std": 0.4, "latents": False})
    assert (experiment.train.noise_std, experiment.train.steps, experiment.latents.mode) == (0.4, 7, "off")


def test_round_trip():
    experiment = replace(Experiment(), **{"train.noise_std": 0.25, "model.logit_range": [-5.0, 0.5], "latents": "off"})
    plain = to_dict(experiment)
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert from_dict(plain) == experiment
    assert from_dict({}) == Experiment()


def test_replace_gives_a_validated_copy():
    experiment = Experiment()
    changed = replace(experiment, **{"train.noise_std": 0.3, "train.steps": 10})
    assert (changed.train.noise_std, changed.train.steps) == (0.3, 10)
    assert experiment == Experiment()
    assert dataclasses.replace(changed, train=experiment.train) == experiment
    with pytest.raises(ConfigError, match=r"^override: train.noise_std: must be at least 0, not -1.0$"):
        replace(experiment, **{"train.noise_std": -1})


def test_defaults_are_not_shared():
    first, second = Experiment(), Experiment()
    first.search.flow.axes.clear()
    first.evaluation.betas.append(9.0)
    assert second == Experiment()
    assert second.search.flow.axes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such config file; raypipe's own are in experiments/configs"),
        ("train: {steps: 1", "not valid YAML (while parsing a flow mapping)"),
        ("- a\n- b\n", "must be a mapping of sections, not list"),
        ("\xff\xfe", None),
        ("train: {steps: 0}", "train.steps: must be at least 1, not 0"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    if message is not None:
        assert str(caught.value) == f"{path}: {message}"


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load(path) == Experiment()


def test_every_field_says_what_it_means():
    for name, field in config.field_names():
        assert field.metadata.get("help") or name == "name", name


def test_rivals_are_compared_with_unless_the_dataset_is_the_built_in_one(tmp_path):
    both = ["flow_matching", "foellmer"]
    assert from_dict({}).rivals == Experiment().rivals == []
    assert from_dict({"rivals": both}).rivals == both
    for dataset in ({"root": "shards"}, {"name": "kth"}):
        assert from_dict({"dataset": dataset}).rivals == both
        assert from_dict({"dataset": dataset, "rivals": []}).rivals == []
    path = tmp_path / "c.yaml"
    path.write_text("dataset: {name: kth}")
    assert load(path).rivals == both
    assert config.load_stored(path).rivals == []  # it has begun without


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gan"], "config: rivals.0: input should be 'flow_matching' or 'foellmer', not 'gan'"),
        ("foellmer", "config: rivals: input should be a valid list, not 'foellmer'"),
        (["foellmer"] * 2, "config: rivals: must be a list without repetitions, not ['foellmer', 'foellmer']"),
    ],
)
def test_unknown_rivals_are_refused(given, message):
    with pytest.raises(ConfigError) as caught:
        from_dict({"rivals": given})
    assert str(caught.value) == message


PUBLISHED = {
    "autoencoder.type": "vqvae",
    "autoencoder.channels": 4,
    "model.num_input_frames": 4,
    "model.inner_dim": 768,
    "model.depth": 4,
    "model.mid_depth": 5,
    "model.num_heads": 8,
    "model.dropout": 0.05,
    "sde.sigma": 1e-7,
    "sde.delta": 1e-3,
    "train.component": "flow",
    "train.noise_std": 0.1,
    "train.steps": 300_000,
    "train.batch_size": 16,
    "train.learning_rate": 1e-5,
    "train.weight_decay": 5e-6,
    "train.schedule": "sqrt",
    "train.warmup_steps": 5_000,
    "search.gpus_per_trial": 1.0,
    "search.cpus_per_trial": 4,
}
EXPECTED = {
    "demo": {
        "dataset.image_size": 64,
        "dataset.num_frames": 12,
        "evaluation.horizon": 8,
        "model.inner_dim": 64,
        "train.steps": 1500,
        "latents.mode": "cache",
    },
    "demo_components": {
        "dataset.image_size": 64,
        "search.finalist_seeds": 2,
    },
    "smmnist": {
        "dataset.image_size": 64,
        "dataset.num_frames": 15,
        "evaluation.horizon": 10,
        "model.num_input_frames": 5,
    },
    "kth": {
        **PUBLISHED,
        "dataset.image_size": 64,
        "dataset.num_frames": 40,
        "evaluation.horizon": 36,
        "dataset.frame_stride": 1,
        "dataset.color_jitter": False,
        "latents.mode": "cache",
    },
    "clevrer": {
        **PUBLISHED,
        "dataset.image_size": 128,
        "dataset.num_frames": 16,
        "evaluation.horizon": 12,
        "dataset.frame_stride": 1,  # the conversion keeps every fifth frame
        "dataset.color_jitter": True,
        "latents.mode": "off",
    },
    "bair": {
        **PUBLISHED,
        "dataset.image_size": 64,
        "dataset.num_frames": 16,
        "evaluation.horizon": 12,
        "dataset.horizontal_flip": False,
        "latents.mode": "cache",
    },
}


def test_every_shipped_config_is_expected():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_shipped_configs(name):
    experiment = load(CONFIGS / f"{name}.yaml")
    assert experiment.name == name
    assert experiment.dataset.name == name.partition("_")[0]
    for field, value in EXPECTED[name].items():
        section, leaf = field.split(".")
        actual = getattr(getattr(experiment, section), leaf)
        assert actual == value, field
        assert type(actual) is type(value), field
    for component in config.COMPONENTS:
        assert experiment.search.stages[component].axes.keys() == Experiment().search.stages[component].axes.keys()
        replace(experiment, **{"train.component": component})  # the file serves all


@pytest.mark.parametrize("name", ["kth", "clevrer", "bair"])
def test_published_learning_rates_are_searched(name):
    experiment = load(CONFIGS / f"{name}.yaml")
    for component, rate in (("flow", 1e-5), ("denoiser", 1e-4), ("diffusion", 1e-4)):
        axis = experiment.search.stages[component].axes["train.learning_rate"]
        assert axis.low < rate < axis.high


def test_the_demo_config_spells_out_the_defaults():
    assert load(CONFIGS / "demo.yaml") == Experiment()
