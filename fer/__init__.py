"""Facial expression recognition that does not depend on who the person is: ELIM."""
