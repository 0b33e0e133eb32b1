"""Training on several ranks: how the process was started, its group, collectives, DDP and FSDP2."""
