"""What a batch is read from: adapters that give every loader one interface."""
