"""How the primary is found to be back, and how it gets what was acknowledged while it was away."""
