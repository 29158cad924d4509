"""The clips of the demo, the built-in dataset: discs and polygons that collide in a box and get random kicks.

All bodies keep moving, so repeating the last frame is a bad prediction; the kicks are unpredictable, so the future is a
distribution. Sizes and speeds are given for frames of 64 pixels and scale with the frame size.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
import pymunk
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BOX = 64.0
"""Side of the box in pixels."""
RADIUS = (7.0, 10.0)
"""Range of the bodies' radii in pixels."""
SPEED = (1.5, 3.0)
"""Range of the speeds in pixels per frame."""
SPIN = 0.25
"""Largest angular velocity in radians per frame."""
SUBSTEPS = 4
"""Simulation steps per frame."""
SUPERSAMPLING = 4
"""Frames are drawn this many times larger, then averaged down."""

Generator = np.random.Generator


@dataclass(frozen=True)
class Body:
    """One body of the scene. outline: [n, 2], corners relative to its center, or None for a disc."""

    body: pymunk.Body
    radius: float
    outline: NDArray[np.float64] | None
    color: tuple[int, int, int]


def make_clip(rng: Generator, frames: int, image_size: int, kick_probability: float) -> NDArray[np.uint8]:
    """Simulate and draw one clip, [frames, image_size, image_size, 3]."""
    space = pymunk.Space()
    space.iterations = 20
    _add_walls(space)
    bodies = _add_bodies(space, rng)
    canvas = _background(rng, image_size * SUPERSAMPLING)
    clip = np.empty((frames, image_size, image_size, 3), np.uint8)
    for frame in clip:
        frame[:] = _draw(bodies, canvas)
        _advance(space, bodies, rng, kick_probability)
    return clip


def _add_walls(space: pymunk.Space) -> None:
    thickness = 20.0  # thick enough that no fast body passes through
    low, high = -thickness, BOX + thickness
    for a, b in [
        ((low, low), (high, low)),
        ((low, high), (high, high)),
        ((low, low), (low, high)),
        ((high, low), (high, high)),
    ]:
        wall = pymunk.Segment(space.static_body, a, b, thickness)
        wall.elasticity, wall.friction = 1.0, 0.0
        space.add(wall)


def _add_bodies(space: pymunk.Space, rng: Generator) -> list[Body]:
    count = int(rng.integers(2, 4))
    hue = rng.random()
    bodies: list[Body] = []
    for i, centre in enumerate(_places(count, rng)):
        radius = float(rng.uniform(*RADIUS))
        corners = int(rng.choice([0, 0, 3, 4, 5, 6]))  # 0 is a disc; a third of the bodies
        body = pymunk.Body(mass=radius**2, moment=radius**4 / 2)
        body.position = centre
        body.velocity = _velocity(rng)
        body.angle = float(rng.uniform(0, 2 * math.pi))
        body.angular_velocity = float(rng.uniform(-SPIN, SPIN))
        outline = None
        shape: pymunk.Shape
        if corners:
            # A polygon looks smaller than its circumscribed disc, so enlarge it to compensate.
            angles = 2 * math.pi * np.arange(corners) / corners
            outline = radius * (1.15 if corners < 5 else 1.05) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            shape = pymunk.Poly(body, [(float(x), float(y)) for x, y in outline])
        else:
            shape = pymunk.Circle(body, radius)
        shape.elasticity, shape.friction = 1.0, 0.0
        space.add(body, shape)
        saturation, value = rng.uniform(0.65, 0.9), rng.uniform(0.9, 1.0)
        red, green, blue = colorsys.hsv_to_rgb((hue + (i + rng.uniform(-0.15, 0.15)) / count) % 1, saturation, value)
        bodies.append(Body(body, radius, outline, (round(255 * red), round(255 * green), round(255 * blue))))
    return bodies


def _places(count: int, rng: Generator) -> list[tuple[float, float]]:
    """Random centers at which even bodies of the largest size do not overlap each other or the walls."""
    reach = RADIUS[1] * 1.15
    while True:
        centres = rng.uniform(reach, BOX - reach, size=(count, 2))
        gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(count, 1)]
        if gaps.min() > 2 * reach:
            return [(float(x), float(y)) for x, y in centres]


def _velocity(rng: Generator) -> tuple[float, float]:
    speed, angle = rng.uniform(*SPEED), rng.uniform(0, 2 * math.pi)
    return float(speed * math.cos(angle)), float(speed * math.sin(angle))


def _advance(space: pymunk.Space, bodies: list[Body], rng: Generator, kick_probability: float) -> None:
    """Advance by one frame: kicks, motion, then clamp the speeds to their range, since collisions exchange energy."""
    kicks = rng.random(len(bodies)) < kick_probability
    for item, kicked in zip(bodies, kicks, strict=True):
        if kicked:
            item.body.velocity = _velocity(rng)
    for _ in range(SUBSTEPS):
        space.step(1 / SUBSTEPS)
    for item in bodies:
        speed = item.body.velocity.length
        if speed < 1e-6:
            item.body.velocity = _velocity(rng)
        elif not SPEED[0] <= speed <= SPEED[1]:
            item.body.velocity = item.body.velocity * (min(max(speed, SPEED[0]), SPEED[1]) / speed)
        item.body.angular_velocity = min(max(item.body.angular_velocity, -SPIN), SPIN)


def _background(rng: Generator, pixels: int) -> Image.Image:
    """A dark background, plain or (in half of the clips) with soft blotches."""
    base = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.5), rng.uniform(0.08, 0.18)))
    blotches = rng.uniform(0.6, 1.5, size=(6, 6, 1)) if rng.random() < 0.5 else np.ones((6, 6, 1))
    small = Image.fromarray((255 * base * blotches).clip(0, 255).astype(np.uint8))
    return small.resize((pixels, pixels), Image.Resampling.BICUBIC)


def _draw(bodies: list[Body], background: Image.Image) -> NDArray[np.uint8]:
    """Draw one frame, antialiased by supersampling. Each body has a dark rim and a lighter interior."""
    image = background.copy()
    draw = ImageDraw.Draw(image)
    scale = image.width / BOX
    for item in bodies:
        x, y = item.body.position.x * scale, item.body.position.y * scale
        for share, shade in ((1.0, 0.55), (0.86, 1.0)):
            fill = tuple(round(shade * c) for c in item.color)
            if item.outline is None:
                r = share * item.radius * scale
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            else:
                cos, sin = math.cos(item.body.angle), math.sin(item.body.angle)
                turned = item.outline @ np.array([[cos, sin], [-sin, cos]]) * (share * scale) + (x, y)
                draw.polygon([tuple(corner) for corner in turned.tolist()], fill=fill)
    return np.asarray(image.reduce(SUPERSAMPLING))
