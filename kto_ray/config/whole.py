"""The whole configuration, and what must fit together."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kto_ray.config.adapters import AdaptersSection
from kto_ray.config.base import Section
from kto_ray.config.capture import FeedbackSection
from kto_ray.config.deciding import GateSection, RolloutSection
from kto_ray.config.learning import DataSection, KtoSection, TrainSection
from kto_ray.config.loop import LoopSection
from kto_ray.config.platform import HttpSection, LimitsSection, RaySection
from kto_ray.config.retention import RetentionSection
from kto_ray.config.serving import ModelSection, ServeSection

DEFAULT_SALT = "kto-ray"  # everybody knows it


class Config(Section):
    home: str = Field("runs/local", validate_default=True)  # artifacts: a directory or s3://bucket/prefix
    store_url: str | None = Field(None, repr=False)  # SQLAlchemy URL; None is SQLite in home
    embedded: bool = True  # one machine: loopback Ray, SQLite allowed
    # Of user hashes and key hashes; a secret one in production, which never changes
    salt: str = Field(DEFAULT_SALT, min_length=1, repr=False)
    model: ModelSection = ModelSection()
    ray: RaySection = RaySection()
    http: HttpSection = HttpSection()
    limits: LimitsSection = LimitsSection()
    serve: ServeSection = ServeSection()
    feedback: FeedbackSection = FeedbackSection()
    data: DataSection = DataSection()
    kto: KtoSection = KtoSection()
    train: TrainSection = TrainSection()
    adapters: AdaptersSection = AdaptersSection()
    gate: GateSection = GateSection()
    rollout: RolloutSection = RolloutSection()
    loop: LoopSection = LoopSection()
    retention: RetentionSection = RetentionSection()

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: str) -> str:
        """Workers run in directories of their own, so a local home must not depend on where they stand."""
        return home if "://" in home else str(Path(home).expanduser().absolute())

    @model_validator(mode="after")
    def _adapters_fit(self) -> Config:
        """Those of the `kto` section, and of every candidate."""
        self._adapter_fits("kto", self.kto)
        for name, over in self.loop.candidates.items():
            where, kto = f"loop.candidates.{name}", self.with_kto(over.model_dump()).kto
            if kto.dora and not self.loop.enabled:
                raise ValueError(
                    f"{where} has dora true, its own or that of kto: vLLM cannot serve a DoRA adapter, and candidates "
                    f"are for rounds, which also an operator begins; set {where}.dora: false, or set kto.dora without "
                    "candidates to train and evaluate by hand"
                )
            self._adapter_fits(where, kto)
        return self

    def _adapter_fits(self, where: str, kto: KtoSection) -> None:
        if kto.rank > self.serve.max_lora_rank:
            raise ValueError(
                f"{where}.rank is {kto.rank}, but serve.max_lora_rank is {self.serve.max_lora_rank}: "
                "the replicas could not load the adapter; raise serve.max_lora_rank"
            )
        if kto.dora and self.loop.enabled:
            raise ValueError(
                f"{where}.dora is true and loop.enabled is true: vLLM cannot serve a DoRA adapter, so every round "
                f"would fail; set {where}.dora: false, or loop.enabled: false to train and evaluate by hand"
            )
        if kto.dora and self.train.sharding == "fsdp":
            raise ValueError(
                f"{where}.dora is true and train.sharding is 'fsdp': DoRA needs the norms of whole base weights; "
                f"set {where}.dora: false (rslora works) or train.sharding: none"
            )
        if kto.reference == "champion" and (self.train.quantize, self.train.sharding) != ("none", "none"):
            raise ValueError(
                f"{where}.reference is 'champion', but train.quantize is {self.train.quantize!r} and train.sharding "
                f"{self.train.sharding!r}: a champion is loaded onto a whole, unquantized base; set both to none, "
                f"or {where}.reference: base"
            )

    @model_validator(mode="after")
    def _learning_fits(self) -> Config:
        if self.train.device == "cpu" and self.train_dtype == "float16":
            raise ValueError(
                f"train.device is 'cpu', but train.dtype is {self.train.dtype!r} and model.dtype {self.model.dtype!r}: "
                "float16 is trained on GPUs only; set train.dtype: float32, or both to auto"
            )
        if self.data.max_length > self.model.max_model_len:
            raise ValueError(
                f"data.max_length is {self.data.max_length}, above model.max_model_len "
                f"{self.model.max_model_len}; lower it"
            )
        return self

    @model_validator(mode="after")
    def _staff_fits(self) -> Config:
        for who, wanted in self.rollout.staff.items():
            model, at, version = wanted.partition("@")
            if at and model != self.model.served_name:
                raise ValueError(
                    f"rollout.staff gives {who!r} {wanted!r}, and model.served_name is {self.model.served_name!r}: "
                    f"there is no such version; name one of its own, as {self.model.served_name}@{version}"
                )
        return self

    @model_validator(mode="after")
    def _places_fit(self) -> Config:
        if self.store_url is None and "://" in self.home:
            raise ValueError(
                f"home is {self.home!r} and store_url is not set: the store cannot be a file there; "
                "set store_url to a postgresql+psycopg:// URL, or to sqlite:///FILE on one machine"
            )
        if self.http.spool is None and "://" in self.home:
            raise ValueError(
                f"home is {self.home!r} and http.spool is not set: gateways keep answers and feedback on a local disk "
                "while the store is away; set http.spool to a folder that outlives them"
            )
        if not self.embedded and self.database_url.startswith("sqlite"):
            raise ValueError(
                f"store_url is {self.database_url!r}: SQLite serves one machine; "
                "set a postgresql+psycopg:// URL or embedded: true"
            )
        if not self.embedded and "://" not in self.home:
            raise ValueError(
                f"home is {self.home!r}, a local directory; beyond one machine it must be a URI such as s3://bucket/kto"
            )
        return self

    @model_validator(mode="after")
    def _names_last(self) -> Config:
        """Beyond one machine: what is hashed or fetched under a name is the same for good."""
        if not self.embedded and self.salt == DEFAULT_SALT:
            raise ValueError(
                f"salt is {DEFAULT_SALT!r}, the default, which everybody knows: users' hashes in snapshots could be "
                "turned back into names; set a secret one for good, in the environment as KTO_RAY__SALT"
            )
        if not self.embedded and self.model.of_hub and not re.fullmatch("[0-9a-f]{40}", self.model.revision or ""):
            raise ValueError(
                f"model.id is {self.model.id!r} and model.revision {self.model.revision!r}: nodes that start on "
                "different days could serve different weights under one name; set model.revision to the full hash of a "
                "commit (its page on Hugging Face shows it)"
            )
        return self

    @property
    def train_dtype(self) -> str:
        """Training's precision; "auto" where the machine decides."""
        return self.model.dtype if self.train.dtype == "auto" else self.train.dtype

    def with_dtype(self, dtype: str) -> Config:
        """The same with `dtype` where the precision is "auto": the machine has decided."""
        model = self.model.model_copy(update={"dtype": dtype}) if self.model.dtype == "auto" else self.model
        train = self.train if self.train.dtype != "auto" else self.train.model_copy(update={"dtype": model.dtype})
        return self.model_copy(update={"model": model, "train": train})

    def with_kto(self, over: Mapping[str, Any]) -> Config:
        """The same with this set over its `kto` section.

        Raises:
            ValueError: a field is unknown, or a value is not allowed.
        """
        kto = KtoSection.model_validate({**self.kto.model_dump(), **over})
        return self.model_copy(update={"kto": kto})

    @property
    def database_url(self) -> str:
        if self.store_url is not None:
            return self.store_url
        return f"sqlite:///{self.home}/kto.db"

    @property
    def spool(self) -> str:
        """Where the gateways of a machine have their spools, a folder each."""
        return str(Path(self.http.spool or f"{self.home}/spool").expanduser().absolute())

    @property
    def store_mark(self) -> str:
        """Tells one store from another, however its path is spelled, and nothing else of it: a stranger who guesses
        the URL, and the password in it, has nothing to try guesses against without the salt."""
        url = self.database_url
        if url.startswith("sqlite:///"):
            url = f"sqlite:///{os.path.realpath(url.removeprefix('sqlite:///'))}"
        return hmac.new(self.salt.encode(), url.encode(), hashlib.sha256).hexdigest()[:16]

    def pool(self, name: Literal["serve", "train"]) -> dict[str, str]:
        """Ray's label selector of a node pool; empty where every node is for everything."""
        return {} if self.ray.pool_label is None else {self.ray.pool_label: name}

    @property
    def base_name(self) -> str:
        """The served name of the base model without an adapter."""
        return f"{self.model.served_name}@base"
