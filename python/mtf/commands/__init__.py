"""Commands of `mtf` that have a module of their own, and what all of them use."""
