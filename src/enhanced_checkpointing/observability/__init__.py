"""What happened, as frozen records; where they are sent is decided by the sinks."""
