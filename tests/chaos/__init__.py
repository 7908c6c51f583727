"""Chaos: graphs of every kind run without pause while the database, the network and their own process are broken.

`python -m tests.chaos --minutes 1 --seed 7`. Start reading at `arena.py`; `judge.py` says what must be equal, and why.
"""
