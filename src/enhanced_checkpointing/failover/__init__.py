"""What LangGraph calls, and the rules by which a call goes to the primary, the journal or the standby."""
