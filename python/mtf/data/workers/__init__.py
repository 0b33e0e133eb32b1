"""Worker processes: pools, supervision, and the time limit of a fetch."""
