"""Synthetic people: how each looks, how each shows what they feel, and what they feel from frame to frame.

Everything of a person is drawn from (seed, the person's number), so any subset can be made by itself. Coordinates run
from -1 to 1, y downwards; colours lie in [0, 1].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int

_LIGHT, _DARK = np.array([0.96, 0.80, 0.70]), np.array([0.40, 0.26, 0.18])
_HAIR = np.array([[0.10, 0.08, 0.07], [0.30, 0.18, 0.10], [0.55, 0.36, 0.18], [0.82, 0.68, 0.40], [0.62, 0.62, 0.64]])
_IRIS = np.array([[0.30, 0.20, 0.10], [0.25, 0.42, 0.60], [0.28, 0.45, 0.25]])
_MOOD, _MOTION, _CORRELATION = 0.35, 0.40, 0.85  # of labels: habit, change, and how slow the change is


class Person(NamedTuple):
    """A look, a resting face, and gains of expression."""

    tone: float  # 0 light .. 1 dark
    age: float  # 18 .. 85 years
    skin: np.ndarray
    hair: np.ndarray
    background: np.ndarray
    iris: np.ndarray
    half_width: float
    half_height: float
    jaw: float
    hairline: float
    eye_spacing: float
    eye_y: float
    eye_half_width: float
    openness: float
    brow_thickness: float
    brow_distance: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_half_width: float
    lip: float
    curvature: float
    gap: float
    beard: float
    texture: np.ndarray  # [6, 4]: amplitude, two frequencies, phase
    gain_curvature: float
    gain_opening: float
    gain_eyes: float
    gain_brows: float


class Expression(NamedTuple):
    """The geometry of one frame's face."""

    curvature: float
    opening: float
    openness: float
    brow_distance: float
    brow_tilt: float
    mouth_half_width: float
    folds: float
    teeth: float
    frown: float


def draw_person(seed: int, number: int, curvature_std: float, gain_std: float) -> Person:
    """Person `number`; `curvature_std`: of the resting mouth, `gain_std`: of the logarithms of the gains.

    With `curvature_std` and `gain_std` both 0 there is no style: the resting face is everybody's (openness, brows and
    mouth gap too), and equal feelings look equal.
    """
    random = np.random.default_rng([seed, number, 0])
    u = lambda low, high: float(random.uniform(low, high))  # noqa: E731
    tone, ageing = u(0, 1), u(0, 1)
    skin = (1 - tone) * _LIGHT + tone * _DARK + random.normal(0, 0.02, 3)
    hair = np.clip(_HAIR[random.integers(5)] * u(0.8, 1.2), 0, 1)
    look: dict[str, Any] = {
        "background": random.uniform(0.15, 0.85, 3),
        "iris": _IRIS[random.integers(3)],
        "half_width": u(0.52, 0.68),
        "half_height": u(0.70, 0.86),
        "jaw": u(1.8, 2.8),
        "hairline": u(-0.62, -0.42),
        "eye_spacing": u(0.24, 0.32),
        "eye_y": u(-0.20, -0.10),
        "eye_half_width": u(0.095, 0.135),
        "brow_thickness": u(0.020, 0.045),
        "nose_length": u(0.16, 0.26),
        "nose_width": u(0.07, 0.12),
        "mouth_y": u(0.36, 0.46),
        "mouth_half_width": u(0.20, 0.30),
        "lip": u(0.025, 0.05),
        "beard": u(0.2, 0.5) if random.random() < 0.25 else 0.0,
        "texture": np.column_stack(
            [random.normal(0, 0.012, 6), random.uniform(-9, 9, (6, 2)), random.uniform(0, 2 * np.pi, 6)]
        ),
    }
    rest: dict[str, Any] = {
        "openness": u(0.38, 0.62),
        "brow_distance": u(0.16, 0.24),
        "brow_tilt": float(random.normal(0, 0.10)),
        "curvature": float(random.normal(0, 1)) * curvature_std,
        "gap": u(0, 0.03),
    }
    gains = np.exp(random.normal(0, 1, 4) * gain_std)
    if not curvature_std and not gain_std:
        rest = {"openness": 0.5, "brow_distance": 0.2, "brow_tilt": 0.0, "curvature": 0.0, "gap": 0.015}
    return Person(
        tone=tone,
        age=18.0 + 67.0 * ageing,
        skin=np.clip(skin, 0, 1),
        hair=hair,
        **look,
        **rest,
        gain_curvature=float(gains[0]),
        gain_opening=float(gains[1]),
        gain_eyes=float(gains[2]),
        gain_brows=float(gains[3]),
    )


def express(person: Person, valence: float | int, arousal: float | int) -> Expression:
    """How this person looks with these feelings.

    Mouth, eyes and brows carry the person's offsets and gains; cheek folds, teeth and frown lines are everybody's.
    """
    v, a, p = valence, arousal, person
    smile, grief = max(v, 0.0), max(-v, 0.0)
    return Expression(
        curvature=p.curvature + p.gain_curvature * v,
        opening=float(np.clip(p.gap + 0.10 * p.gain_opening * max(0.35 + a, 0.0) ** 1.2, 0, 0.22)),
        openness=float(np.clip(p.openness * (1 + 0.55 * p.gain_eyes * a) - 0.10 * smile, 0.08, 1)),
        brow_distance=p.brow_distance + 0.07 * p.gain_brows * a,
        brow_tilt=p.brow_tilt + 0.30 * p.gain_brows * grief * float(np.tanh(-2 * (a - 0.1))),
        mouth_half_width=p.mouth_half_width * (1 + 0.22 * smile),
        folds=0.45 * smile,
        teeth=0.9 * float(np.clip(v + 0.2, 0, 1)),
        frown=0.55 * grief * float(np.clip(0.6 + 0.4 * a, 0, 1)),
    )


def draw_feelings(
    seed: int, number: int, person: Person, frames: int, confounding: float, in_training: bool
) -> Float64[np.ndarray, "frames 2"]:
    """Valence and arousal in [-1, 1]: a slow random walk around the person's habitual mood.

    In training the mood goes with skin tone and background (`confounding`, in [0, 1]), elsewhere with nothing.
    """
    random = np.random.default_rng([seed, number, 1])
    own = random.normal(0, 1, 2)
    if in_training:
        looks = np.array([2 * person.tone - 1, (person.background[0] - person.background[2]) / 0.7])
        mood = _MOOD * (confounding * looks + 0.6 * np.sqrt(1 - 0.45 * confounding**2) * own)
    else:
        mood = _MOOD * 0.9 * own
    mood = np.clip(mood, -0.6, 0.6)
    state, feelings = random.normal(0, 1, 2), np.empty((frames, 2))
    for frame in range(frames):
        feelings[frame] = np.clip(mood + _MOTION * state, -1, 1)
        state = _CORRELATION * state + np.sqrt(1 - _CORRELATION**2) * random.normal(0, 1, 2)
    return feelings


# Sectors of 60 degrees counter-clockwise from happy (valence to the right, arousal upwards), as places in CATEGORIES.
_SECTORS = np.array([1, 3, 4, 6, 5, 2])  # happy, surprise, fear, anger, disgust, sad
_NEUTRAL_RADIUS = 0.2


def categorize(valence_arousal: Float64[np.ndarray, "n 2"]) -> Int[np.ndarray, " n"]:
    """Category of each point of the plane: neutral in the middle, else one of six sectors of 60 degrees."""
    angle = np.degrees(np.arctan2(valence_arousal[:, 1], valence_arousal[:, 0])) % 360
    sector = _SECTORS[np.minimum(((angle + 30) % 360 // 60).astype(int), 5)]
    return np.where(np.hypot(*valence_arousal.T) < _NEUTRAL_RADIUS, 0, sector)
