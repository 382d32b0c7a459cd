"""Which characters the embedded glyph data set uses, and their clean renderings.

The fonts are the twelve DejaVu text styles that every matplotlib installation carries.
"""

from __future__ import annotations

import functools
import importlib.metadata
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from common.data.cache import cached_arrays

STYLES = tuple(
    f"DejaVu{family}.ttf"
    for family in (
        *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
        *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
        *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
    )
)
# First words of Unicode character names. Order matters: of two look-alikes the one named first here stays, so the
# small held-out scripts are complete.
SCRIPTS_OF_SPLIT = {
    "test": ("ARMENIAN", "GEORGIAN", "HEBREW"),
    "validation": ("CYRILLIC",),
    "train": ("LATIN", "GREEK", "CANADIAN", "ARABIC", "LAO", "LISU", "OLD", "COPTIC"),
}
MIN_STYLES = 4
# Correlation of blurred, size-normalised renderings from which, in any Sans style, two characters count as one shape:
# 0.93 joins A of Latin, Greek and Cyrillic, c with C, and most letters that differ by a small accent only.
SAME_SHAPE = 0.93
_COMPARED_STYLES = range(4)
_FONT_PIXELS = 128
_VERSION = 1  # raise when the choice of characters or their rendering changes


@dataclass(frozen=True)
class Glyph:
    """A character and the indices of the `STYLES` that hold it."""

    codepoint: int
    split: str
    styles: tuple[int, ...]

    @property
    def name(self) -> str:
        """Class name, e.g. 'U+00561 armenian small letter ayb'; sorts by code point."""
        return f"U+{self.codepoint:05X} {unicodedata.name(chr(self.codepoint)).lower()}"


def versions() -> list[object]:
    """What renderings depend on besides their parameters: part of the key of everything cached here."""
    return [_VERSION, *(importlib.metadata.version(package) for package in ("pillow", "matplotlib"))]


@functools.lru_cache(maxsize=1)
def inventory() -> tuple[Glyph, ...]:
    """All usable characters, sorted by code point: letters in at least four styles, no two of one shape."""
    arrays = cached_arrays({"name": "glyph-inventory", "version": versions()}, _make_inventory)
    return tuple(
        Glyph(int(codepoint), str(split), tuple(int(style) for style in np.flatnonzero(styles)))
        for codepoint, split, styles in zip(arrays["codepoints"], arrays["splits"], arrays["styles"], strict=True)
    )


def _make_inventory() -> dict[str, np.ndarray]:
    candidates = _candidates()
    similarity = np.zeros((len(candidates), len(candidates)), np.float32)
    for style in _COMPARED_STYLES:
        shapes = np.zeros((len(candidates), 24 * 24), np.float32)  # 0, so like nothing, where the style lacks one
        for row, glyph in enumerate(candidates):
            if style in glyph.styles:
                # Whole numbers whose products sum to less than 2**24 are exact in float32, in any order of summation:
                # no machine decides differently about a pair at the threshold.
                shapes[row] = np.rint(1000 * normalised_shape(glyph.codepoint, style))
        np.maximum(similarity, shapes @ shapes.T, out=similarity)
    similarity /= 1000**2
    kept: list[int] = []
    for row in range(len(candidates)):
        if (similarity[row, kept] < SAME_SHAPE).all():
            kept.append(row)
    glyphs = sorted((candidates[row] for row in kept), key=lambda glyph: glyph.codepoint)
    return {
        "codepoints": np.array([glyph.codepoint for glyph in glyphs]),
        "splits": np.array([glyph.split for glyph in glyphs]),
        "styles": np.array([[style in glyph.styles for style in range(len(STYLES))] for glyph in glyphs]),
    }


def render_mask(codepoint: int, style: int, size: int) -> Image.Image:
    """Coverage (mode 'L', 255 = ink) of a character cropped to its ink, the longer side scaled to `size` pixels."""
    # The basic layout draws a character as it is in the font, whether or not Pillow was built with text shaping.
    font = _font(style)
    left, top, right, bottom = font.getbbox(chr(codepoint))
    canvas = Image.new("L", (max(1, int(right - left)) + 4, max(1, int(bottom - top)) + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), chr(codepoint), fill=255, font=font)
    ink = canvas.crop(canvas.getbbox())
    scale = size / max(ink.size)
    target = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
    return ink.resize(target, Image.Resampling.BICUBIC)


def normalised_shape(codepoint: int, style: int) -> Float32[np.ndarray, " 576"]:
    """Blurred 24 x 24 rendering as a vector of length 1: dot products are correlations of shapes."""
    ink = render_mask(codepoint, style, 40)
    canvas = Image.new("L", (48, 48))
    canvas.paste(ink, ((48 - ink.width) // 2, (48 - ink.height) // 2))
    shape = np.asarray(canvas.filter(ImageFilter.GaussianBlur(1)).reduce(2), np.float32).ravel()
    return shape / np.float32(np.linalg.norm(shape.astype(np.float64)))


def _candidates() -> list[Glyph]:
    from fontTools.ttLib import TTFont

    covered = []
    for style in STYLES:
        with TTFont(_font_folder() / style, lazy=True) as font:
            covered.append({code for code, glyph in (font.getBestCmap() or {}).items() if glyph != ".notdef"})
    candidates = []
    for split, scripts in SCRIPTS_OF_SPLIT.items():
        for codepoint in sorted(covered[0]):
            character = chr(codepoint)
            if not unicodedata.category(character).startswith("L"):
                continue
            styles = tuple(style for style, codes in enumerate(covered) if codepoint in codes)
            if len(styles) >= MIN_STYLES and unicodedata.name(character, "").split(" ")[0] in scripts:
                candidates.append(Glyph(codepoint, split, styles))
    return candidates


def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.lru_cache(maxsize=len(STYLES))
def _font(style: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_folder() / STYLES[style], _FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
