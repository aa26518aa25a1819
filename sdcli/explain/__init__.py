"""Figures and pages out of what was drawn: a gallery over a folder of pictures."""
