"""Draws a synthetic face: soft masks painted from back to front at twice the resolution, then averaged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt8

from common.data.faces.people import Expression, Person

_SOFTNESS = 1.5  # of edges, in pixels of the doubled picture


class _Canvas:
    """RGB picture with coordinates from -1 to 1."""

    def __init__(self, side: int, background: np.ndarray):
        self.unit = 2.0 / side
        self.pixels = np.broadcast_to(background, (side, side, 3)).astype(np.float64)

    def inside(self, distance: np.ndarray) -> np.ndarray:
        """Soft mask of where a signed distance is negative."""
        return 1.0 / (1.0 + np.exp(np.clip(distance / (_SOFTNESS * self.unit / 2), -40, 40)))

    def paint(self, mask: np.ndarray, color: np.ndarray | float | int) -> None:
        self.pixels += mask[..., None] * (np.asarray(color) - self.pixels)


def render(
    person: Person, expression: Expression, image_size: int, random: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """One frame; `random` draws the pose, the light and the noise."""
    side = 2 * image_size
    ticks = (np.arange(side) + 0.5) * 2 / side - 1
    px, py = np.meshgrid(ticks, ticks)
    turn, scale = random.normal(0, 0.06), np.exp(random.normal(0, 0.03))
    shift = random.normal(0, 0.03, 2)
    dx, dy = (px - shift[0]) / scale, (py - shift[1]) / scale
    x, y = np.cos(turn) * dx + np.sin(turn) * dy, -np.sin(turn) * dx + np.cos(turn) * dy
    canvas = _Canvas(side, person.background)
    _paint_head(canvas, person, x, y)
    _paint_eyes(canvas, person, expression, x, y)
    _paint_lines(canvas, person, expression, x, y)
    _paint_mouth(canvas, person, expression, x, y)
    light = 1 + 0.15 * random.normal() + 0.15 * random.normal() * px
    small = (canvas.pixels * light[..., None]).reshape(image_size, 2, image_size, 2, 3).mean(axis=(1, 3))
    small += random.normal(0, 0.015, small.shape)
    return np.rint(255 * np.clip(small, 0, 1)).astype(np.uint8)


def _ellipse(x, y, cx: float | int, cy: float | int, rx: float, ry: float) -> np.ndarray:
    """Approximate signed distance to an ellipse."""
    return (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * min(rx, ry)


def _paint_head(canvas: _Canvas, p: Person, x: np.ndarray, y: np.ndarray) -> None:
    canvas.paint(canvas.inside(_ellipse(x, y, 0, -0.12, p.half_width * 1.14, p.half_height * 1.10)), p.hair)
    neck = np.maximum(np.abs(x) - 0.55 * p.half_width, 0.45 - y)
    canvas.paint(canvas.inside(neck), 0.82 * p.skin)
    # Below the centre the face narrows towards the chin.
    narrowing = 1 - 0.22 * np.clip(y / p.half_height, 0, 1) ** p.jaw
    face = canvas.inside(_ellipse(x / narrowing, y, 0, 0, p.half_width, p.half_height))
    waves = [amplitude * np.sin(fx * x + fy * y + phase) for amplitude, fx, fy, phase in p.texture]
    shading = 1 - 0.18 * (x / p.half_width) ** 2 - 0.10 * np.maximum(y, 0)
    skin = p.skin * shading[..., None] + np.sum(waves, axis=0)[..., None]
    # Fine horizontal lines grow with age.
    wrinkles = 0.05 * (p.age - 18) / 67 * np.sin(60 * y) * canvas.inside(y - p.hairline - 0.28)
    canvas.paint(face, skin + wrinkles[..., None])
    if p.beard:
        canvas.paint(p.beard * face * canvas.inside(0.22 - y), 0.8 * p.hair)
    canvas.paint(face * canvas.inside(y - p.hairline - 0.06 * np.cos(4 * x)), p.hair)  # fringe
    nose = canvas.inside(_ellipse(x, y, 0, p.eye_y + p.nose_length + 0.06, p.nose_width, 0.045))
    bridge = canvas.inside(np.maximum(np.abs(x) - 0.02, np.abs(y - p.eye_y - p.nose_length / 2) - p.nose_length / 2))
    canvas.paint(0.45 * nose + 0.2 * bridge * (1 - nose), 0.72 * p.skin)


def _paint_eyes(canvas: _Canvas, p: Person, e: Expression, x: np.ndarray, y: np.ndarray) -> None:
    for side in (-1, 1):
        cx = side * p.eye_spacing
        half_height = p.eye_half_width * e.openness
        eye = canvas.inside(_ellipse(x, y, cx, p.eye_y, p.eye_half_width, half_height))
        canvas.paint(
            canvas.inside(_ellipse(x, y, cx, p.eye_y, p.eye_half_width + 0.015, half_height + 0.015)), 0.5 * p.skin
        )
        canvas.paint(eye, 0.95)
        canvas.paint(eye * canvas.inside(np.hypot(x - cx, y - p.eye_y) - 0.058), p.iris)
        canvas.paint(eye * canvas.inside(np.hypot(x - cx, y - p.eye_y) - 0.028), 0.05)
        # Tilt > 0: the inner end is higher (sad); < 0: lower (angry).
        along = (x - cx) * side
        line = p.eye_y - e.brow_distance + e.brow_tilt * along + 0.9 * along**2
        brow = np.maximum(np.abs(y - line) - p.brow_thickness, np.abs(x - cx) - 1.25 * p.eye_half_width)
        canvas.paint(canvas.inside(brow), 0.6 * p.hair)


def _paint_lines(canvas: _Canvas, p: Person, e: Expression, x: np.ndarray, y: np.ndarray) -> None:
    """Cheek folds beside the mouth and frown lines between the brows: everybody's, of weak contrast."""
    dark = 0.55 * p.skin
    for side in (-1, 1):
        cx = side * (p.mouth_half_width + 0.10)
        ring = np.abs(np.hypot((x - cx) * 1.0, (y - p.mouth_y + 0.06) * 0.7) - 0.10) - 0.012
        outer = canvas.inside(-(x - cx) * side)
        canvas.paint(e.folds * canvas.inside(ring) * outer, dark)
        frown = np.maximum(np.abs(x - side * 0.045) - 0.012, np.abs(y - p.eye_y + 0.16) - 0.07)
        canvas.paint(e.frown * canvas.inside(frown), dark)


def _paint_mouth(canvas: _Canvas, p: Person, e: Expression, x: np.ndarray, y: np.ndarray) -> None:
    q = x / e.mouth_half_width
    middle = p.mouth_y + e.opening / 2 - 0.16 * e.curvature * (q**2 - 0.45)
    gape = e.opening / 2 * np.maximum(1 - q**2, 0)
    ends = np.abs(x) - e.mouth_half_width
    lips = np.maximum(np.abs(y - middle) - gape - p.lip * np.sqrt(np.maximum(1 - q**2, 0.05)), ends)
    lip_color = np.clip(p.skin * np.array([0.85, 0.55, 0.55]), 0, 1)
    canvas.paint(canvas.inside(lips), lip_color)
    hole = canvas.inside(np.maximum(np.abs(y - middle) - gape, ends)) * (e.opening > 0.005)
    canvas.paint(hole, np.array([0.25, 0.06, 0.07]))
    upper = canvas.inside(y - (middle - gape + 0.045))
    canvas.paint(e.teeth * hole * upper, 0.94)


def contact_sheet(images: UInt8[np.ndarray, "n s s 3"], columns: int) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures side by side, row by row; missing ones are white."""
    rows = -(-len(images) // columns)
    side = images.shape[1]
    sheet: Float64[np.ndarray, "n s s 3"] | np.ndarray = np.full((rows * columns, side, side, 3), 255, np.uint8)
    sheet[: len(images)] = images
    return sheet.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
