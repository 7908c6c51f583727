"""What runs in the background: asking whether the primary is well, and giving it what it missed."""
