"""Numbers in, numbers out: ranking, intervals, sequential tests. Pure."""
