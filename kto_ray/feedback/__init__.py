"""Feedback: what users said of an answer, and what that teaches."""
