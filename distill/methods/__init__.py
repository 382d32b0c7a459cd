"""The three methods of the family, one file each; a file is found by its name."""
