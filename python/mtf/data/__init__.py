"""Sources of batches and how they reach the training step."""
