"""What deploy/ holds, checked as far as that goes without an image registry."""
