"""The terminal: `checkpointing` and its commands. Nothing of the library imports it."""
