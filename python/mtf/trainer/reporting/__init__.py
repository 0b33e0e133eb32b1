"""What a run writes down: rows, progress bars, and the record of its schedule."""
