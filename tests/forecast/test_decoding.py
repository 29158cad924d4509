"""Frames from latents with the help of the last given frame: by hand, and in the predictor."""

import json
import math
import shutil

import pytest
import torch

from raypipe import checkpoint
from raypipe.common.errors import UserError
from raypipe.data.frames import to_float
from raypipe.forecast.decoding import DECODINGS, LastFrame, decode, decodings, frames_of
from raypipe.forecast.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from raypipe.forecast.predictor import load_predictor
from raypipe.models.components import build_component


def pixel(value):
    return torch.full((3, 1, 1), value)


def made(decoding, decoded, frame=0.5, again=0.4, interpolate=1):
    """The frames of one member that is decoded to these values, as numbers."""
    steps = torch.stack([pixel(value) for value in decoded])[None]
    return frames_of(decoding, steps, LastFrame(pixel(frame), pixel(again)), interpolate)[0, :, 0, 0, 0].tolist()


def test_each_decoding_by_hand():
    decoded = [0.4, 0.2, 0.95]
    assert made("plain", decoded) == pytest.approx(decoded)
    assert made("anchored", decoded) == pytest.approx([0.5, 0.3, 1.0])  # + 0.1, clipped
    assert made("fading", [0.0, 0.0]) == pytest.approx([0.1 * math.exp(-1 / 8), 0.1 * math.exp(-2 / 8)])
    weight = math.exp(-((0.2 / 0.1) ** 2))
    assert made("copied-0.1", decoded) == pytest.approx([0.5, 0.2 + weight * 0.3, 0.95], abs=1e-6)


def test_in_between_frames_fade_by_their_time():
    quarters = made("fading", [0.0] * 8, interpolate=4)
    assert quarters[3::4] == pytest.approx(made("fading", [0.0] * 2))
    assert quarters == sorted(quarters, reverse=True)


def test_one_channel_that_changes_is_a_change():
    decoded = torch.tensor([0.4, 0.4, -0.9]).view(1, 1, 3, 1, 1)
    found = frames_of("copied-0.1", decoded, LastFrame(pixel(0.5), pixel(0.4)))
    torch.testing.assert_close(found, decoded)


@pytest.mark.parametrize("decoding", [name for name in DECODINGS if name not in ("plain", "fading")])
def test_a_forecast_that_nothing_moves_is_the_last_frame_itself(tiny_data, decoding):
    autoencoder = checkpoint.load_autoencoder(tiny_data.workspace.autoencoder)
    frame = to_float(torch.from_numpy(tiny_data.frames("val").clip(0)[:2]))
    latents = autoencoder.encode(frame).detach()
    last = LastFrame(frame, decode(autoencoder, latents))
    still = latents[:, None, None].expand(-1, 3, 4, -1, -1, -1)
    found = frames_of(decoding, decode(autoencoder, still), last)
    assert found.shape == (2, 3, 4, 3, 32, 32)
    torch.testing.assert_close(found, frame[:, None, None].expand_as(found), atol=1e-5, rtol=0)
    assert not torch.allclose(last.decoded, frame, atol=0.05)  # the untrained autoencoder loses much


def test_a_change_paints_its_neighbors_too():
    again, frame = torch.zeros(3, 5, 5), torch.full((3, 5, 5), 0.1)
    decoded = again.clone()
    decoded[:, 2, 2] = 0.9
    found = frames_of("copied-0.1", decoded[None, None], LastFrame(frame, again))[0, 0, 0]
    weight = math.exp(-((0.9 / 9 / 0.1) ** 2))
    expected = torch.full((5, 5), 0.1)
    expected[1:4, 1:4] = 0.1 * weight
    expected[2, 2] = 0.9 + weight * (0.1 - 0.9)
    torch.testing.assert_close(found, expected)


def test_a_setting_names_its_decodings():
    assert decodings("best") == tuple(DECODINGS)
    assert decodings("plain") == ("plain",)
    assert len(decodings("copied")) > 1 and all(name.startswith("copied-") for name in decodings("copied"))


@pytest.fixture
def best(tiny_data, tmp_path):
    """A predictor's folder, whose flow has random weights."""
    model = tiny_data.experiment.model
    shutil.copytree(tiny_data.workspace.autoencoder, tmp_path / "autoencoder")
    torch.manual_seed(0)
    flow = build_component("flow", model, tiny_data.channels)
    meta = checkpoint.Meta(tiny_data.channels, component="flow", model=model)
    checkpoint.save_component(tmp_path / "flow", flow, meta)
    manifest = Manifest("flow-00", 1.0, 1.0, 1, model.num_input_frames, 32, 1, "demo")
    write_manifest(tmp_path / MANIFEST, manifest, {})
    return tmp_path


def rewrite(best, **entries):
    path = best / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_predictor_decodes_as_its_manifest_says(tiny_data, best):
    frames = to_float(torch.from_numpy(tiny_data.frames("val").clip(0)[:5]))[None]
    plain = load_predictor(best).predict(frames, 3, interpolate=2)
    autoencoder = checkpoint.load_autoencoder(best / "autoencoder")
    last = LastFrame(frames[:, -1], decode(autoencoder, autoencoder.encode(frames[:, -1]).detach()))
    for name in DECODINGS:
        rewrite(best, decoding=name)
        found = load_predictor(best).predict(frames, 3, interpolate=2)
        torch.testing.assert_close(found, frames_of(name, plain, last, 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(load_predictor(best).predict(frames, 3), found[:, :, 1::2], atol=1e-5, rtol=0)


def test_a_manifest_of_an_earlier_version_decodes_plainly(best):
    entries = json.loads((best / MANIFEST).read_text())
    del entries["decoding"]
    (best / MANIFEST).write_text(json.dumps(entries))
    assert read_manifest(best).decoding == "plain"


def test_an_unknown_decoding_is_refused(best):
    rewrite(best, decoding="painted")
    with pytest.raises(UserError, match=r"decoding: must be one of plain, anchored, .*, not 'painted'"):
        read_manifest(best)
