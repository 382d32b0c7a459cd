"""Data for anomaly detection: good images to learn from, test images with labels and, where there are, pixel masks."""

from common.data.anomaly.dataset import AnomalyData, count_training_images, load, names
from common.data.anomaly.frame import Frame

__all__ = ["AnomalyData", "Frame", "count_training_images", "load", "names"]
