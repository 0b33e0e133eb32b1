"""The state of a run: its position, its components, and a value that holds all of it."""
