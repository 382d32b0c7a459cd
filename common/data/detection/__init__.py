"""Data for object detection: images with labelled boxes, in named sources."""

from common.data.detection.dataset import DetectionData, DetectionSplit, load, names

__all__ = ["DetectionData", "DetectionSplit", "load", "names"]
