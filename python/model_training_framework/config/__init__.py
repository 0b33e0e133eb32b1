"""Configurations: see ``schemas``."""
