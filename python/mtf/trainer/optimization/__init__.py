"""What turns losses into updates: optimizers, learning rate schedulers, precision, and the guard against NaN."""
