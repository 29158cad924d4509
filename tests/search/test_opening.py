"""--resume finds the experiment to continue, even one killed at its very beginning, or says that there is none."""

import os
import runpy

import pytest
import yaml

from raypipe import cli, config, train, tune
from raypipe.config import ConfigError
from raypipe.distributed.named_run import begun, plan_run
from raypipe.search import progress
from raypipe.search.opening import open_workspace
from raypipe.workspace.claims import LOCK, hold
from raypipe.workspace.layout import Workspace
from tests.raytools import ROOT, listing, outcome, tiny

SEARCHES = {
    "pipeline.py": runpy.run_path(str(ROOT / "experiments" / "pipeline.py"), run_name="pipeline")["main"],
    **{
        f"raypipe.tune {name}": (lambda argv, name=name: tune.main([name, *argv]))
        for name in ("flow", "denoiser", "diffusion")
    },
}


def opened(storage, *argv):
    """The name of the experiment that a search command chooses."""
    args, overrides = cli.parse(tune.make_parser("pipeline.py", ""), ["--storage", str(storage), *argv])
    return open_workspace(args, overrides, progress.is_unfinished)[1].name


def make_begun(storage, name, at):
    folder = storage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(tiny(name=name))))
    os.utime(folder / "config.yaml", (at, at))


@pytest.mark.parametrize("prog", SEARCHES)
def test_a_search_with_nothing_to_resume_is_refused(tmp_path, capfd, prog):
    def refusal(*argv):
        before = listing(tmp_path)
        assert outcome(SEARCHES[prog], prog, ["--resume", "--storage", tmp_path / "storage", *argv]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and listing(tmp_path) == before
        return err

    start = f"{prog}: error: --resume: no experiment"
    end = "omit --resume to start one, or correct --name or --storage\n"
    assert refusal() == f"{start} 'demo' in {tmp_path / 'storage'} (it holds no experiments); {end}"
    assert refusal("--name", "x").startswith(f"{start} 'x' in ")
    for number in range(9):
        make_begun(tmp_path / "storage", f"kth-{number}", at=1000 + number)
        os.utime(tmp_path / "storage" / f"kth-{number}", (1000 + number,) * 2)
    (tmp_path / "storage" / "datasets" / "demo-1").mkdir(parents=True)
    holds = "it holds the experiments kth-8, kth-7, kth-6, kth-5, kth-4, kth-3, kth-2, kth-1 and 1 more"
    assert refusal() == f"{start} 'demo' in {tmp_path / 'storage'} ({holds}); {end}"
    assert f"no experiment 'kth-9' in {tmp_path / 'storage'} ({holds})" in refusal("--name", "kth-9")
    kth = tmp_path / "kth.yaml"
    kth.write_text("name: kth9")
    assert f"{start} 'kth9' in " in refusal("--config", kth)


def test_a_folder_of_another_program_is_no_experiment(tmp_path):
    (tmp_path / "demo" / "videos").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no experiment 'demo' in .* \(it holds no experiments\)"):
        opened(tmp_path, "--resume")


def test_a_search_killed_before_its_config_was_written_is_resumed(tmp_path, caplog):
    make_begun(tmp_path, "demo", at=1000)
    assert opened(tmp_path, "--resume") == "demo"
    (tmp_path / "demo-2").mkdir()  # killed as soon as it was created
    assert opened(tmp_path, "--resume") == opened(tmp_path, "--resume", "--name", "demo-2") == "demo-2"
    (tmp_path / "demo-2" / LOCK).touch()  # or a moment later
    assert opened(tmp_path, "--resume") == "demo-2"
    assert "demo-2: interrupted before its settings were stored; those of this command are used" in caplog.text
    os.utime(tmp_path / "demo-2", (900, 900))
    assert opened(tmp_path, "--resume") == "demo"  # the latest
    (tmp_path / "kept" / "autoencoder").mkdir(parents=True)
    assert opened(tmp_path, "--resume", "--name", "kept") == "kept"
    assert listing(tmp_path / "demo-2") == [LOCK]


def test_ctrl_c_keeps_what_resume_needs_and_an_error_leaves_nothing(tmp_path):
    workspace = Workspace(tmp_path, "demo")
    with pytest.raises(ConfigError), hold(workspace):
        raise ConfigError("dataset.image_size: must be 64")
    assert listing(tmp_path) == []
    with pytest.raises(KeyboardInterrupt, match="run the same command with --resume to continue"), hold(workspace):
        raise KeyboardInterrupt
    assert opened(tmp_path, "--resume") == "demo"


def test_a_training_with_nothing_to_resume_is_refused(tmp_path, capfd):
    def refusal(*argv):
        before = listing(tmp_path)
        assert outcome(train.main, train.PROG, ["--resume", "--storage", tmp_path, *argv]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and listing(tmp_path) == before
        return err

    assert f"no run 'f-01-nll' in {tmp_path}/x/flow ({tmp_path}: it holds no experiments); omit" in refusal(
        "--name", "x", "--run-name", "f-01-nll"
    )
    make_begun(tmp_path, "demo", at=1000)
    assert f"no run 'x-1' in {tmp_path}/x/flow ({tmp_path}: it holds the experiment demo)" in refusal(
        "--name", "x", "--run-name", "x-1", "--component", "flow"
    )
    assert f"no run 'd-003' in {tmp_path}/demo/denoiser (it holds no denoiser runs); omit --resume" in refusal(
        "--run-name", "d-003"
    )
    for run in ("f-01-mse", "f-02-nll"):
        (tmp_path / "demo" / "ray" / "train" / f"flow-{run}").mkdir(parents=True)
    assert "(it holds the flow runs f-01-mse, f-02-nll); omit" in refusal("--run-name", "f-01-nll")


def test_a_training_is_resumable_from_its_beginning_and_an_error_leaves_nothing(tmp_path):
    workspace = Workspace(tmp_path / "storage", "demo")
    settings = plan_run(tiny(), workspace, "f-01-nll")
    with pytest.raises(ConfigError), begun(settings):
        raise ConfigError("dataset.image_size: must be 64")
    assert listing(tmp_path) == []
    with pytest.raises(KeyboardInterrupt, match="--resume"), begun(settings):
        raise KeyboardInterrupt
    assert plan_run(tiny(), workspace, "f-01-nll", resume=True) == settings
    with pytest.raises(ConfigError, match="'f-01-nll' is unfinished; add --resume"):
        plan_run(tiny(), workspace, "f-01-nll")
    with pytest.raises(ConfigError), begun(settings):
        raise ConfigError("this time it was there before")
    assert settings.storage.joinpath(settings.name).is_dir()
    message = f"process {os.getpid()} on .* is training this run; wait until it ends, or choose another --run-name"
    with begun(settings):
        with pytest.raises(ConfigError, match=message), begun(settings):
            pass
        assert settings.storage.joinpath(settings.name).is_dir()
