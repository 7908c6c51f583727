"""The documents; `docs/building` makes the parts of them that are made."""
