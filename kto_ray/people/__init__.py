"""Simulated users: their tastes, what they say, and a crowd that chats over HTTP."""
