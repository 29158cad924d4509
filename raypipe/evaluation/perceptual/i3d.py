"""I3D (Carreira and Zisserman 2017), trained on Kinetics-400: the network of FVD, with the names of its state dict."""

from torch import Tensor, cat, nn
from torch.nn import functional

from raypipe.evaluation.perceptual.padding import same

WIDTH = 400
"""Number of features of a clip: the logits of the classes."""
SIZE = 224
"""Height and width of the frames that the network takes."""
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of each inception block: of branch 0, of both layers of branches 1 and 2, and of branch 3."""


class I3D(nn.Module):
    """Clips [n, 3, T, H, W] in [-1, 1], T at least 9, to logits averaged over time, [n, 400]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        channels = 192
        for name, widths in MIXED.items():
            self.add_module(f"Mixed_{name}", _Inception(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = _Unit(channels, WIDTH, 1, last=True)

    def forward(self, clips: Tensor) -> Tensor:
        frames = clips.transpose(1, 2).flatten(0, 1)
        sized = functional.interpolate(frames, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = sized.unflatten(0, (len(clips), -1)).transpose(1, 2)
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in ("4b", "5b"):
                size = 3 if name == "4b" else 2
                x = _pool(x, (size,) * 3, (2,) * 3)
            x = self.get_submodule(f"Mixed_{name}")(x)
        x = functional.avg_pool3d(x, (2, 7, 7), 1)
        logits: Tensor = self.logits(x)
        return logits.mean((2, 3, 4))


class _Inception(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(channels, widths[0], 1)
        self.b1a, self.b1b = _Unit(channels, widths[1], 1), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(channels, widths[3], 1), _Unit(widths[3], widths[4], 3)
        self.b3b = _Unit(channels, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class _Unit(nn.Module):
    """Convolution, batch norm and ReLU; the last one is a convolution with a bias."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, *, last: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else functional.relu(self.bn(x))


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Largest value; x is not negative, so the zeros of the padding do not count."""
    return functional.max_pool3d(same(x, kernel, stride), kernel, stride)
