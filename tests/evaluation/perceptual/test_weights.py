"""Files of weights: what is accepted, and what is said of the rest. Networks are small ones of the same interface."""

import hashlib
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from raypipe import config
from raypipe.common.errors import UserError
from raypipe.evaluation.perceptual import i3d, weights
from raypipe.evaluation.perceptual.efflite0 import weights_file
from raypipe.evaluation.perceptual.lpips import Lpips
from tests.perceptualtools import I3dScript, JepaScript, VggScript, save_script


def experiment(**settings):
    small = {"dataset.image_size": 32, "model.num_input_frames": 4, "evaluation.horizon": 8}
    return config.replace(config.Experiment(), **small | settings)


def refusal(kind, path):
    with pytest.raises(UserError) as error:
        weights.check_weights(experiment(**{f"evaluation.{kind}_weights": str(path)}))
    message = str(error.value)
    assert "\n" not in message and message.startswith(f"evaluation.{kind}_weights: {path}: ")
    assert message.endswith(f"; accepted: {weights.ACCEPTED[kind]}")
    return message.removeprefix(f"evaluation.{kind}_weights: {path}: ")


@pytest.mark.parametrize(("kind", "script"), [("i3d", I3dScript), ("lpips", VggScript), ("vjepa", JepaScript)])
def test_torchscript_of_the_published_interface_is_accepted(tmp_path, kind, script):
    path = save_script(script(), tmp_path / "network.pt")
    given = experiment(**{f"evaluation.{kind}_weights": str(path)})
    weights.check_weights(given)
    found = weights.weights_hashes(given.evaluation)
    assert found[kind] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["efflite0"] == hashlib.sha256(weights_file().read_bytes()).hexdigest()
    assert [name for name, digest in found.items() if digest is None] == [k for k in weights.ACCEPTED if k != kind]


@torch.no_grad()
def test_what_torchscript_networks_are_given(tmp_path):
    clips = 2 * torch.rand(2, 12, 3, 32, 32) - 1
    features = weights.load_network("i3d", save_script(I3dScript(), tmp_path / "i3d.pt"))(clips)
    pixels = 127.5 * (clips + 1)
    torch.testing.assert_close(features[:, :3], pixels.mean((1, 3, 4)))
    torch.testing.assert_close(features[:, 3:6], (pixels[:, 1:] - pixels[:, :-1]).abs().mean((1, 3, 4)))
    lpips = weights.load_network("lpips", save_script(VggScript(), tmp_path / "vgg16.pt"))
    expected = (functional.avg_pool2d(pixels[0] - pixels[1], 8) / 255).square().sum((1, 2, 3))
    torch.testing.assert_close(lpips(clips[0], clips[1]), expected)
    jepa = weights.load_network("vjepa", save_script(JepaScript(), tmp_path / "jepa.pt"))(clips)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(jepa[:, :3], ((pixels.mean((1, 3, 4)) / 255) - mean) / std, atol=1e-3, rtol=0)


def test_a_state_dict_of_i3d_is_accepted_with_the_prefix_of_data_parallel(tmp_path):
    network = i3d.I3D()
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "i3d.pt")
    weights.check_weights(experiment(**{"evaluation.i3d_weights": str(tmp_path / "i3d.pt")}))
    loaded = weights.load_network("i3d", tmp_path / "i3d.pt").state_dict()
    assert all(torch.equal(tensor, loaded[f"_network.{name}"]) for name, tensor in network.state_dict().items())


def test_a_state_dict_of_lpips_is_accepted_with_its_weights_listed_twice(tmp_path):
    """`lpips.LPIPS` holds the fitted weights as attributes and in a list."""
    state = Lpips().state_dict()
    twice = state | {f"lins.{name[3:]}": tensor for name, tensor in state.items() if name.startswith("lin")}
    torch.save(twice, tmp_path / "lpips.pt")
    weights.check_weights(experiment(**{"evaluation.lpips_weights": str(tmp_path / "lpips.pt")}))


def test_vjepa_is_read_from_its_encoder_and_the_probe_beside_it(tmp_path, monkeypatch):
    small = weights.vjepa.VJepa(32, 1)
    monkeypatch.setattr(weights.vjepa, "VJepa", lambda: type(small)(32, 1))
    monkeypatch.setattr(weights, "WIDTHS", {"vjepa": 32})
    state = small.state_dict()
    encoder = {f"module.backbone.{k.removeprefix('encoder.')}": v for k, v in state.items() if k.startswith("encoder.")}
    pooler = {f"module.{k}": v for k, v in state.items() if k.startswith("pooler.")}
    pooler["module.linear.bias"] = torch.ones(2)
    path = tmp_path / "vith16.pth.tar"
    torch.save({"target_encoder": encoder, "opt": {"lr": 1.0}, "epoch": 3}, path)
    given = experiment(**{"evaluation.vjepa_weights": str(path)})
    with pytest.raises(UserError, match=r"ssv2-probe.pth.tar: no such file; accepted: vith16.pth.tar with ssv2-probe"):
        weights.check_weights(given)
    torch.save({"classifier": pooler, "epoch": 3}, tmp_path / weights.PROBE)
    weights.check_weights(given)
    clips = torch.rand(1, 12, 3, 32, 32)
    with torch.no_grad():
        found = weights.load_network("vjepa", path)(clips)
        torch.testing.assert_close(found, small(weights._for_imagenet(clips)))
    files = [path, tmp_path / weights.PROBE]
    expected = "+".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert weights.weights_hashes(given.evaluation)["vjepa"] == expected


@pytest.mark.parametrize("kind", list(weights.ACCEPTED))
def test_files_that_hold_no_weights_are_refused(tmp_path, kind):
    assert refusal(kind, tmp_path / "none.pt").startswith("no such file;")
    (tmp_path / "text.pt").write_text(json.dumps({"a": 1}))
    assert refusal(kind, tmp_path / "text.pt").startswith("cannot be read (")
    torch.save([1, 2], tmp_path / "list.pt")
    assert refusal(kind, tmp_path / "list.pt").startswith("holds a list instead of weights;")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    said = refusal(kind, tmp_path / "linear.pt") if kind != "vjepa" else "holds the weights of another network ("
    assert said.startswith("holds the weights of another network (")


def test_torchscript_that_does_not_fit_is_refused(tmp_path):
    narrow = save_script(I3dScript(width=10), tmp_path / "narrow.pt")
    assert refusal("i3d", narrow).startswith("its output is [1, 10] instead of [1, 400];")
    other = save_script(JepaScript(), tmp_path / "other.pt")
    assert refusal("i3d", other).startswith("cannot score clips of 12 frames of 32x32 pixels (")
    short = {"evaluation.horizon": 4, "evaluation.i3d_weights": str(tmp_path / "i3d.pt")}
    torch.save(i3d.I3D().state_dict(), tmp_path / "i3d.pt")
    with pytest.raises(UserError, match="cannot score clips of 8 frames of 32x32 pixels"):
        weights.check_weights(experiment(**short))
