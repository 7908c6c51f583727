"""PostgreSQL: on the tables of LangGraph's own saver."""
