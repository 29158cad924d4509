"""Small networks with the interfaces of the published TorchScript files, whose features are easy to compute."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class I3dScript(nn.Module):
    """As i3d_torchscript.pt: clips [n, 3, T, H, W] in 0..255 to [n, 400], the first six of which are not 0.

    These are the mean of each channel, and of its change from frame to frame.
    """

    def __init__(self, width: int = 400) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        assert rescale and resize and return_features
        change = (x[:, :, 1:] - x[:, :, :-1]).abs()
        features = torch.cat([x.mean((2, 3, 4)), change.mean((2, 3, 4))], 1)
        return functional.pad(features, [0, self.width - 6])


class JepaScript(nn.Module):
    """Clips [n, 3, T, 224, 224] to [n, 1280], the first three of which are the means of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[3] == 224 and x.shape[4] == 224
        return functional.pad(x.mean((2, 3, 4)), [0, 1277])


class VggScript(nn.Module):
    """As vgg16.pt of StyleGAN2: frames [n, 3, H, W] in 0..255 to features whose squared distance is LPIPS."""

    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips and not resize_images
        return functional.avg_pool2d(x / 255, 8).flatten(1)


def save_script(network, path):
    torch.jit.script(network).save(str(path))
    return path
