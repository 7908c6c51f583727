"""What LangGraph calls: where a call goes, and what becomes of it while the primary fails."""
