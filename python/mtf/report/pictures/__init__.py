"""The figures of a report: what they show, how they look, and their values under the pointer."""
