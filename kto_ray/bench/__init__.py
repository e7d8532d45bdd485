"""`kto-ray bench NAME`: speed and learning, the peer measured in the same run."""
