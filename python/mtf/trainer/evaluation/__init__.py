"""Validation: every batch exactly once, and one row of metrics for several loaders."""
