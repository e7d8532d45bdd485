"""The frozen records that cross rooms, a module a noun. Times are seconds since the epoch (UTC)."""
