"""The engine: vLLM replicas that hold what the store asks for."""
