"""What `enhanced_checkpointing.serving` is made of: the ASGI application and the status page."""
