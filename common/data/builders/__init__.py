"""Builders of data sets that tensorflow-datasets lacks, from what a user has on disk: `python -m common.data.prepare`.

A file per data set says which trees it accepts (`layouts.py`) and how they become splits; `base.py` writes them. None
needs TensorFlow: pictures are stored as the encoded files that they come in.
"""
