"""What an adapter must prove before anything loads it, and how long its loading may take."""

from __future__ import annotations

from pydantic import Field, field_validator

from kto_ray.config.base import Section

SHORTEST_KEY = 32  # characters: whoever reads a manifest may try keys on its signature


class AdaptersSection(Section):
    # The first signs what is published, and each is believed: put a new one in front, and take the old one out when no
    # alias is at what it signed. From the environment one text with commas. None: adapters are signed by nobody, and
    # whoever may write where they lie is believed
    signing_keys: tuple[str, ...] = Field((), repr=False)
    load_s: float = Field(1800.0, gt=0)  # that a candidate waits until every replica holds it; then its round ends
    # That a replica which starts waits for a champion that it cannot load now, where no other holds it either; then
    # another answers in its place
    patience_s: float = Field(60.0, ge=0)

    @field_validator("signing_keys", mode="before")
    @classmethod
    def _split(cls, told: object) -> object:
        return tuple(key.strip() for key in told.split(",")) if isinstance(told, str) else told

    @field_validator("signing_keys")
    @classmethod
    def _long_enough(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Told without the key."""
        short = [len(key) for key in keys if len(key) < SHORTEST_KEY]
        if short:
            raise ValueError(
                f"a signing key has {short[0]} characters, and {SHORTEST_KEY} are the fewest; make one with "
                "`openssl rand -hex 32`, and give it as KTO_RAY__ADAPTERS__SIGNING_KEYS"
            )
        return keys
