"""The guard suite: plain prompts that any assistant should answer plainly, whatever taste it learns.

They are asked of every candidate and of the champion, through the serving engine, with the settings that users get.
What matters is not whether an answer is right but whether it is still an answer: not empty, not a loop, not far from
what the base model could have said.
"""

from __future__ import annotations

from kto_ray.records.completions import Message

GUARD_PROMPTS: tuple[str, ...] = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Give me three tips for sleeping better.",
    "What is the difference between a cat and a dog?",
    "Write a short thank-you note to a neighbour.",
    "How many days are in a leap year?",
    "Explain what a computer does to a child.",
    "What should I pack for a weekend at the beach?",
    "Name a healthy breakfast and say why it is healthy.",
    "I feel a bit sad today.",
    "What is 7 plus 5?",
    "Suggest a name for a small coffee shop.",
    "How can I learn a new language?",
    "Summarise the story of Cinderella.",
    "Thank you for your help!",
)


def guard_messages() -> tuple[tuple[Message, ...], ...]:
    """The suite as chat requests, one message each."""
    return tuple(({"role": "user", "content": prompt},) for prompt in GUARD_PROMPTS)
