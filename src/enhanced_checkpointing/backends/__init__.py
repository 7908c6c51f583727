"""Where checkpoints can live: one small contract, found through entry points."""
