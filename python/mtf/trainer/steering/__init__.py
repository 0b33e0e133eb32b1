"""Runs that are steered: data that are left out, and what is done about spikes of the loss."""
