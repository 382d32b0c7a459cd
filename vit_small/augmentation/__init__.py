"""The training recipe's augmentation, on the device and inside the compiled step."""
