"""The order of samples in a pass, as a function of the pass and its key."""
