"""Measurements side by side, in one run on one machine; each module is a command that prints one table."""
