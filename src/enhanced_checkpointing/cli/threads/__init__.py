"""`checkpointing threads`."""
