"""The loop's one actor: it observes, decides, acts and persists."""
