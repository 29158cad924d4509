"""What every command line shares: flags, overrides, precedence, one-line errors, exit codes, tables."""

import argparse
import signal
import sys
import time

import pytest
import yaml

from raypipe import cli, config
from raypipe.common import terminal
from raypipe.config import ConfigError
from raypipe.data.shards import open_shards
from raypipe.workspace.claims import hold, is_experiment
from raypipe.workspace.layout import Workspace


def parser():
    return cli.experiment_parser("verb", "Does something.")


def parse(*argv):
    return cli.parse(parser(), argv)


def refused(capsys, *argv):
    """The one line on stderr for a command line that is refused."""
    with pytest.raises(SystemExit) as exit_:
        parse(*argv)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("verb: error: ")
    return err


def test_flags_and_dotted_overrides():
    args, overrides = parse(
        "--train.noise_std", "0.3", "--name", "mine", "--model.time_input=false", "--train.learning_rate=1e-3",
        "--evaluation.steps", "[1, 4]", "--train.random_seed", "-1", "--dataset.root", "a=b",
    )  # fmt: skip
    assert args.name == "mine" and args.config is None and args.storage is None
    assert overrides == {
        "train.noise_std": 0.3,
        "model.time_input": False,
        "train.learning_rate": 0.001,
        "evaluation.steps": [1, 4],
        "train.random_seed": -1,
        "dataset.root": "a=b",
    }


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--train.nois_std", "--train.noise_std"),
        ("--nmae", "--name"),
        ("--evaluation.horizn=3", "--evaluation.horizon"),
    ],
)
def test_a_misspelt_flag_is_refused_with_the_nearest(capsys, flag, meant):
    line = refused(capsys, flag, "1")
    assert repr(flag.partition("=")[0]) in line
    assert f"did you mean {meant!r}?" in line


def test_what_is_like_nothing_is_refused_without_a_guess(capsys):
    line = refused(capsys, "--zzzzqqqq", "1")
    assert "'--zzzzqqqq'" in line and "did you mean" not in line


def test_a_bare_word_is_refused(capsys):
    assert "'walking'" in refused(capsys, "walking")


@pytest.mark.parametrize(
    "argv",
    [
        ("--train.steps",),
        ("--train.steps", "--name", "mine"),
        ("--train.steps=",),
        ("--train.steps", "--train.batch_size", "4"),
    ],
)
def test_a_missing_value_is_named(capsys, argv):
    line = refused(capsys, *argv)
    assert "--train.steps" in line and "expected a value" in line


def test_defaults_then_file_then_flags(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "file", "train": {"steps": 7, "batch_size": 8}}))
    experiment = cli.experiment(*parse("--config", str(path), "--train.batch_size", "2"))
    assert experiment.name == "file"
    assert experiment.train.steps == 7
    assert experiment.train.batch_size == 2
    assert experiment.train.schedule == config.Train().schedule
    assert cli.experiment(*parse("--config", str(path), "--name", "flag")).name == "flag"
    assert cli.experiment(*parse()) == config.Experiment()


def test_paths_become_absolute(tmp_path, monkeypatch):
    """Workers of Ray Train run in a folder of their own, where a relative path would lead nowhere."""
    monkeypatch.chdir(tmp_path)
    experiment = cli.experiment(*parse("--dataset.root", "shards", "--autoencoder.path", "../ae"))
    assert experiment.dataset.root == str(tmp_path / "shards")
    assert experiment.autoencoder.path == str(tmp_path.parent / "ae")


def test_errors_say_where_the_value_came_from(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"train": {"steps": 0}}))
    with pytest.raises(ConfigError, match=r"mine\.yaml.*train\.steps.*at least 1.*0"):
        cli.experiment(*parse("--config", str(path)))
    with pytest.raises(ConfigError, match=r"command line.*train\.noise_std.*at least 0.*-1"):
        cli.experiment(*parse("--train.noise_std", "-1"))
    with pytest.raises(ConfigError, match="no such config file"):
        cli.experiment(*parse("--config", str(tmp_path / "none.yaml")))


def test_with_overrides_changes_and_validates():
    base = config.replace(config.Experiment(), name="base", **{"train.steps": 9})
    changed = cli.with_overrides(base, {"evaluation.horizon": 2})
    assert (changed.name, changed.train.steps, changed.evaluation.horizon) == ("base", 9, 2)
    with pytest.raises(ConfigError, match=r"evaluation\.horizon"):
        cli.with_overrides(base, {"evaluation.horizon": 99})


def storage(*argv):
    return cli.storage_root(parse(*argv)[0])


def test_storage_comes_from_flag_then_environment_then_home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPIPE_STORAGE", str(tmp_path / "env"))
    assert storage("--storage", str(tmp_path / "flag")) == tmp_path / "flag"
    assert storage() == tmp_path / "env"
    monkeypatch.delenv("RAYPIPE_STORAGE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage() == tmp_path / "raypipe"


def test_storage_is_absolute_and_takes_file_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage("--storage", "here") == tmp_path / "here"
    assert storage("--storage", f"file://{tmp_path}/two%20words") == tmp_path / "two words"


def test_storage_refuses_other_uris_and_files(tmp_path):
    with pytest.raises(ConfigError, match=r"--storage: .*s3://"):
        storage("--storage", "s3://bucket/raypipe")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--storage: must be a folder, not a file"):
        storage("--storage", str(tmp_path / "file"))


def test_positive():
    assert cli.positive("3") == 3
    for text in ("0", "-2", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a positive integer, not '?{text}"):
            cli.positive(text)


def test_run_turns_bad_input_into_one_line(capsys):
    def bad(argv):
        raise ConfigError("train.steps: must be at least 1,\n  not 0")

    assert cli.run(bad, "verb") == 2
    assert capsys.readouterr() == ("", "verb: error: train.steps: must be at least 1, not 0\n")


def test_run_takes_what_raypipe_says_of_a_bad_file_for_bad_input(capsys, tmp_path):
    assert cli.run(lambda argv: open_shards(tmp_path) and 0, "verb") == 2  # a ValueError, no ConfigError
    err = capsys.readouterr().err
    assert err.startswith(f"verb: error: {tmp_path}: ") and err.count("\n") == 1


def test_run_answers_an_interrupt_with_130_and_how_to_go_on(capsys, tmp_path):
    def interrupted(argv):
        raise KeyboardInterrupt

    def interrupted_search(argv):
        with hold(Workspace(tmp_path, "x")):
            raise KeyboardInterrupt

    assert cli.run(interrupted, "verb") == 130  # a command without --resume, or before there is anything to resume
    assert capsys.readouterr().err == "verb: interrupted; run the same command again\n"
    assert cli.run(interrupted_search, "verb") == 130
    assert capsys.readouterr().err == "verb: interrupted; run the same command with --resume to continue\n"
    assert is_experiment(tmp_path / "x")  # so that --resume finds it


def test_an_interrupt_that_comes_out_as_another_error_is_an_interrupt(capsys, tmp_path):
    class Interrupted:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt  # as a Ctrl-C would: Python 3.11 makes a RuntimeError of it

    def interrupted_search(argv):
        with hold(Workspace(tmp_path, "x")):
            type("Imported", (), {"field": Interrupted()})

    def interrupted_cleanup(argv):
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError("connection lost")

    assert cli.run(interrupted_search, "verb") == 130
    assert capsys.readouterr().err == "verb: interrupted; run the same command with --resume to continue\n"
    assert cli.run(interrupted_cleanup, "verb") == 130
    assert capsys.readouterr().err == "verb: interrupted; run the same command again\n"


def test_an_interrupt_in_a_finalizer_is_not_lost(capsys):
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)  # as a Ctrl-C at that moment: Python ignores the exception

    def interrupted(argv):
        Freed()
        time.sleep(20)

    begin = time.monotonic()
    assert cli.run(interrupted, "verb") == 130
    assert time.monotonic() - begin < 5
    assert capsys.readouterr().err == "verb: interrupted; run the same command again\n"


def test_other_errors_in_finalizers_are_shown_as_ever(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Freed:
        def __del__(self):
            raise ValueError("a bug")

    def buggy(argv):
        Freed()
        return 0

    assert cli.run(buggy, "verb") == 0
    assert [ignored.exc_type for ignored in seen] == [ValueError]
    assert sys.unraisablehook == seen.append


def test_run_hands_over_arguments_and_exit_code_and_hides_no_bug():
    seen = []
    assert cli.run(lambda argv: seen.append(argv) or 7, "verb", ["--x"]) == 7
    assert seen == [["--x"]]
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 // 0, "verb")
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda argv: int("a library's complaint"), "verb")


def test_table_aligns_text_left_and_numbers_right():
    rows = [["flow-00", 0.5, 3, None], ["d", 12345.0, 12, "x"], ["none", float("nan"), 100, "yy"]]
    assert terminal.table(rows, ["trial", "score", "n", "note"]) == "\n".join(
        [
            "trial       score    n  note",
            "-------  --------  ---  ----",
            "flow-00     0.500    3  -",
            "d        1.23e+04   12  x",
            "none            -  100  yy",
        ]
    )


def test_an_empty_table_is_its_header():
    assert terminal.table([], ["a", "long"]) == "a  long\n-  ----"


def help_text(parser, flag, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.parse(parser, [flag])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_help_explains_every_flag_and_help_all_lists_every_field(capsys):
    from raypipe.train import make_parser

    own = make_parser()
    for action in own._actions:
        assert action.help, action.option_strings
    text = help_text(own, "--help-all", capsys)
    flat = " ".join(text.split())
    for name, field in config.field_names():
        assert f"--{name} " in text, name
        if name != "name":
            assert " ".join(field.metadata["help"].split()) in flat, name
    assert max(len(line) for line in text[text.index("Every config field is a flag") :].splitlines()) <= 120


def test_help_begins_with_the_flags_of_daily_use_and_leaves_the_fields_to_help_all(capsys):
    from raypipe import convert_to_h5, generate, train, tune

    for parser, daily, other in (
        (train.make_parser(), "--run-name", "--resume-step"),
        (tune.make_parser("tune_flow.py", ""), "--resume", "--warm-start"),
        (generate.make_parser(), "--input", "--solver"),
        (convert_to_h5.make_parser(), "--data_dir", "--layout"),
    ):
        text = help_text(parser, "--help", capsys)
        first, rest = text[text.index("flags of daily use:") :].split("\nmore flags:\n")
        assert daily in first and other not in first and f"\n  {other} " in rest
        assert len([line for line in first.splitlines() if line.startswith("  -")]) <= 12
    text = help_text(train.make_parser(), "--help", capsys)
    listed = [name for name, _ in config.field_names() if f"\n  --{name} " in text]
    assert sorted(listed) == sorted([*cli.DAILY_FIELDS, "name"])
    assert "--help-all lists them" in text
