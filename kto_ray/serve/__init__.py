"""Serving: gateway (HTTP), policy (the vLLM replica), routing (pure: user -> arm), app (builds the Serve app)."""
