"""`checkpointing migrate`, `export` and `import`."""
