"""Whether the same batches come again: their hashes, and those of the most recent ones."""
