"""Whole threads: listing and deleting them."""
