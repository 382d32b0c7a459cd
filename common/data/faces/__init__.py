"""Faces with identity, valence, arousal, category and age: `load(name, ...)` gives splits in memory."""

from common.data.faces.dataset import CATEGORIES, FaceData, Faces, PictureFiles, load, names

__all__ = ["CATEGORIES", "FaceData", "Faces", "PictureFiles", "load", "names"]
