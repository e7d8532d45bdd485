"""How much a request may bring: every limit of the door, in chat, feedback and headers alike. Pure.

Lengths of names are those of the store's columns, told before anything is generated and alike on every database.
"""

from __future__ import annotations

BODY_BYTES = 4 * 1024 * 1024
BODY_S = 30.0  # in which a body must have arrived
DEPTH = 64  # of nested JSON
VALUES = 100_000  # of a JSON document, containers among them
INTEGERS = (-(2**63), 2**64 - 1)  # what the engine's messages can carry

MESSAGES = 2_048
CHARACTERS = 1_000_000  # of all messages together
TOOLS = 128
SCHEMA_CHARACTERS = 16_384  # of a JSON schema that an answer is to follow
STOPS = 4  # as many as the engine takes
BIASES = 300
TEMPLATE_ARGUMENTS = 16

NAME = 255  # a user, a task, a model, an id, an Idempotency-Key
SYSTEM = 64  # the name of another system

TEXT = 100_000  # characters of an edit
COMMENT = 10_000
REASONS = 32
TAGS_CHARACTERS = 16_384  # of a feedback event's tags, as JSON
