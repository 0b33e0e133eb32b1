"""Which source gives the batch of every step: the schedule, and what it will draw."""
