"""The state of a run: its position, its components, a value that holds all of it, and resuming from a saved one."""
