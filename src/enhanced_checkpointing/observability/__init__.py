"""Events as frozen records, and the sinks that log, trace, count and remember them."""
