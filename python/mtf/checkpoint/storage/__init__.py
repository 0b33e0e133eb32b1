"""Where checkpoints are kept, and how they are written so that no crash loses one."""
