"""The door: the HTTP contract in front of the policy."""
