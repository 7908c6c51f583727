"""`checkpointing journal`."""
