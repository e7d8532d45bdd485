"""Who compares the candidate's answers with the champion's, beside the gate's rules."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from kto_ray.config.base import Params, Section, Share

FIELDS = {  # by the kinds that use them
    "url": ("llm", "reward"),
    "model": ("llm", "reward"),
    "key": ("llm", "reward"),
    "params": ("llm",),
    "pattern": ("rule",),
}
SET = ("model", "messages", "stream")  # of a request, by the judge itself


class JudgeSection(Section):
    """A judge of answers. What it reads leaves this service: guard prompts and both answers, and of `rows` held-out
    judgements what users asked and were answered."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a key may be all digits

    # llm: is asked in words at an OpenAI-compatible endpoint. reward: a model of one number at vLLM's /classify.
    # rule: an answer that `pattern` matches is the better one
    kind: Literal["llm", "reward", "rule"]
    url: str | None = Field(None, pattern=r"^https?://[^\s?#@]+$")  # the base URL, as http://judge:8000/v1
    model: str | None = None  # its name there
    key: SecretStr | None = None  # the bearer token; from the environment as KTO_RAY__GATE__JUDGE__KEY
    # llm: of each request, as the endpoint takes them; a model that thinks first needs more tokens
    params: Params = Field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    pattern: str | None = None  # of a rule: a regular expression, found anywhere
    prompts: int = Field(100, ge=1)  # guard prompts of which it sees both answers; at most those that were asked
    rows: int = Field(100, ge=0)  # held-out answers that it rates, to be held to the users' thumbs; 0: it sees none
    # The win rate against the champion, a tie one half, that must surely be reached. None: it is shown, and decides
    # nothing
    min_win_rate: Share | None = Field(None, gt=0)
    at_once: int = Field(4, ge=1, le=64)  # requests to it
    timeout_s: float = Field(30.0, gt=0)  # until its answer is there; then it is asked once more

    @field_validator("key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        """Told without the key."""
        if key is not None and not re.fullmatch(r"[!-~]+", key.get_secret_value()):
            raise ValueError("a key is of ASCII letters, digits and signs, without spaces or line ends; take those out")
        return key

    @field_validator("params")
    @classmethod
    def _leave_the_question(cls, params: Params) -> Params:
        for name in SET:
            if name in params:
                raise ValueError(
                    f"holds {name}, which the judge sets itself ({', '.join(SET)}), or its answer could not be read; "
                    f"take {name} out" + (" and set gate.judge.model" if name == "model" else "")
                )
        return params

    @model_validator(mode="after")
    def _of_its_kind(self) -> JudgeSection:
        for name, kinds in FIELDS.items():
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is set, and kind is {self.kind!r}, which makes no use of it; take {name} out, or set "
                    f"kind to {' or '.join(map(repr, kinds))}"
                )
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> JudgeSection:
        if self.kind == "rule":
            try:
                re.compile(self.pattern or "")
            except re.error as error:
                raise ValueError(f"pattern is {self.pattern!r}, no regular expression: {error}") from None
            if not self.pattern:
                raise ValueError("kind is 'rule', which needs pattern: the regular expression of a better answer")
        elif self.url is None or not self.model:
            raise ValueError(
                f"kind is {self.kind!r}, which needs url (the endpoint's base, as http://judge:8000/v1) and model"
            )
        return self
