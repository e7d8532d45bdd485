"""From a thumb to all that it touched, and back: lineage and erasure."""
