"""Fetching batches before they are due, under one budget."""
