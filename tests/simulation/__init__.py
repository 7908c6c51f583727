"""The whole checkpointer on virtual time, in a world that is broken by a script: every seed is another history.

`python -m tests.simulation --seed 17 --trace`. Start reading at `run.py`; `ledger.py` says what must hold, and why.
"""
