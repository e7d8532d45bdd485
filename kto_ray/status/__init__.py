"""What is shown of the loop, read from the store."""
