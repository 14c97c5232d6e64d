"""The measurements of `scale.py`, one a file."""
