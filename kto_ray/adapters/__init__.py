"""An adapter's files: their names, what is refused, and how a trained one is published."""
