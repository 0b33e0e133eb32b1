"""What a checkpoint consists of: its files, the manifest, and how a state tree becomes JSON and tensors."""
