"""Serving: the gateway that clients meet, and the policy behind it."""
