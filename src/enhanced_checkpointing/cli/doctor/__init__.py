"""`checkpointing doctor`."""
