"""This process's copy of recent threads, which answers reads while the primary cannot."""
