"""Loggers: where rows of metrics go."""
