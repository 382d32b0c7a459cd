"""The methods that the papers' tables compare with, one file each; the field `method` names the file."""
