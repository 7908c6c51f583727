"""Memory: LangGraph's own saver, with what it lacks."""
