"""A blend before it is read: its samples, what it will draw, and datasets for other frameworks."""
