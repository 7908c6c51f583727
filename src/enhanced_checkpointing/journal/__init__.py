"""What was acknowledged and is not yet in the primary."""
