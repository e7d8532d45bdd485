"""Data: labelled examples become frozen, tokenized, class-balanced snapshots."""
