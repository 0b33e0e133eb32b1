"""Corpora of tokens: many files as one stream, its windows, and its documents packed into rows."""
