"""Programs to start from; tests/examples runs each of them."""
