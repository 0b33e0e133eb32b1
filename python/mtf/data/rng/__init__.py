"""Random numbers of batches: seeded from a batch's position, put back afterwards."""
