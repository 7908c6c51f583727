"""Bounding, repeating and refusing calls. Nothing here knows of LangGraph or of any database."""
