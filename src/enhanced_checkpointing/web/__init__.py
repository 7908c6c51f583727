"""The ASGI application and the status page; `enhanced_checkpointing.serving` is the public door."""
