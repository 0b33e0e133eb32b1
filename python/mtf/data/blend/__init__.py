"""Batches made of several sources: blends, which mix samples inside a batch, and one batch of every source at once."""
