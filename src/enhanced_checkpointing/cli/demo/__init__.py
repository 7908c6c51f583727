"""`checkpointing demo`."""
