"""Measures a candidate and decides whether users may meet it."""
