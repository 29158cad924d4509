"""The protocol of an evaluation: what it names, its bytes, its words, and that scores of two protocols do not mix."""

import json
from dataclasses import replace

import numpy as np
import pytest

from raypipe import config
from raypipe.config import ConfigError
from raypipe.data.frames import to_float
from raypipe.evaluation.protocol import METRICS, in_words, keep_protocol, protocol_of, read_protocol
from raypipe.evaluation.table import CombinationRow
from raypipe.forecast.windows import forecast_windows, true_frames
from raypipe.search import records


def with_settings(data, **settings):
    return replace(data, experiment=config.replace(data.experiment, **settings))


def path_of(data):
    return data.workspace.evaluation / "protocol.json"


def test_the_windows_are_those_that_are_scored(tiny_data):
    """Whoever has the clips finds the true frames of every window by its name and start."""
    found = protocol_of(tiny_data)
    shards = tiny_data.frames("test")
    clips = {name: shards.clip(i) for i, name in enumerate(shards.names)}
    given, horizon = found["frames"]["given"], found["frames"]["predicted"]
    by_name = [clips[w["clip"]][w["start"] + given : w["start"] + given + horizon] for w in found["windows"]["test"]]
    evaluation = tiny_data.experiment.evaluation
    windows = forecast_windows(
        tiny_data.latents("test"), tiny_data.experiment, evaluation.test_windows, evaluation.seed
    )
    truth, _ = true_frames(tiny_data, "test", windows)
    np.testing.assert_array_equal(np.stack(by_name), truth)
    assert to_float(truth).min() >= found["frames"]["range"][0]
    assert len(found["windows"]["validation"]) == evaluation.windows


def test_every_score_of_the_table_is_defined():
    names = {name for key in METRICS for name in key.split(", ")}
    plain = {"key", "split", "flow", "denoiser", "diffusion", "alpha", "beta", "steps", "solver", "baseline", "chosen"}
    plain |= {"nfe_per_frame", "seconds_per_frame", "training_seconds", "trainings", "decoding"}
    for name in set(CombinationRow.__dataclass_fields__) - plain:
        base = name
        for suffix in ("_by_step", "_se", "_pixels", "_sd", "_floor"):
            base = base.removesuffix(suffix)
        assert base in names, name


def test_the_same_evaluation_twice_gives_the_same_bytes(own_data):
    keep_protocol(own_data)
    first = path_of(own_data).read_bytes()
    keep_protocol(own_data)
    assert path_of(own_data).read_bytes() == first
    assert json.loads(first) == protocol_of(own_data)
    assert str(own_data.workspace.storage).encode() not in first


def test_in_words(tiny_data):
    found = protocol_of(tiny_data)
    said = in_words(found, "test")
    assert said.startswith(
        "protocol: 5 windows of 3 clips of demo's test split; 2 frames given, 3 predicted and scored;"
    )
    assert "32x32 pixels in [-1, 1], every frame; 4 members (climatology 5, without noise 1), seed 0;" in said
    assert "\n" not in said and "6 windows of 4 clips" in in_words(found, "validation")
    found["dataset"]["preprocessing"] = {"size": 32, "fit": "pad", "grey": True, "frame_stride": 1}
    found["frames"]["frame_stride"] = 5
    assert "videos padded to 32x32, grey, every frame, then every 5th frame;" in in_words(found, "test")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation.test_windows": 4}, "the number of windows.test was 5 when .* and is 4 now"),
        ({"evaluation.test_members": 8}, "members.test was 4 when .* and is 8 now"),
        ({"evaluation.seed": 1}, "seed was 0 when .* and is 1 now"),
    ],
)
def test_scores_of_two_protocols_are_not_mixed(own_data, settings, said):
    keep_protocol(own_data)
    kept = path_of(own_data).read_bytes()
    other = with_settings(own_data, **settings)
    records.write_rows(own_data.workspace.evaluation / "combinations.parquet", [{"split": "test"}])
    with pytest.raises(ConfigError, match=f"protocol.json: {said}; run python -m raypipe.evaluate --again"):
        keep_protocol(other)
    assert path_of(own_data).read_bytes() == kept
    (own_data.workspace.evaluation / "combinations.parquet").unlink()
    keep_protocol(other)  # nothing was scored yet
    assert read_protocol(own_data.workspace) == protocol_of(other)


def test_other_versions_and_a_split_that_was_added_are_no_other_protocol(own_data):
    keep_protocol(own_data)
    kept = read_protocol(own_data.workspace)
    kept["versions"]["torch"] = "1.0"
    del kept["windows"]["test"], kept["dataset"]["content"]["test"]
    path_of(own_data).write_text(json.dumps(kept))
    records.write_rows(own_data.workspace.evaluation / "combinations.parquet", [{"split": "validation"}])
    keep_protocol(own_data)
    assert read_protocol(own_data.workspace) == protocol_of(own_data) | {"versions": kept["versions"]}


def test_a_damaged_protocol_is_named(own_data):
    assert read_protocol(own_data.workspace) is None
    path_of(own_data).parent.mkdir(exist_ok=True)
    path_of(own_data).write_text("{")
    with pytest.raises(ConfigError, match=r"protocol.json: not a protocol \(.*\); delete it"):
        read_protocol(own_data.workspace)
