"""Simulated users with hidden tastes, who drive the real service over HTTP."""
