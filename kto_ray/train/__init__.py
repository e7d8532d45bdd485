"""Training: a sealed snapshot in, a LoRA adapter out."""
