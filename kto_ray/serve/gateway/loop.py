"""GET /v1/loop and what operators ask of it: POST /v1/loop/run, GET and POST /v1/rollout."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from kto_ray.records.requests import Act, Refused
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, short
from kto_ray.status import adapters, rollouts, rounds
from kto_ray.store import requests

ON_ROLLOUTS = (*requests.ON_CANDIDATE, *requests.ON_ROLLOUT, Act.ROLLBACK)
EXPIRES_S = 60.0  # a request that no controller took by then is not done any more
ANSWER_S = 10.0  # that a client waits for the controller


@dataclass(frozen=True, slots=True)
class Acted:
    """What came of an operator's request, in words."""

    action: Act
    result: str


LATER: dict[int | str, dict[str, Any]] = {202: {"model": Acted, "description": "The controller has yet to handle it"}}


def router(door: Door) -> APIRouter:
    routes = APIRouter()
    loop_page = door.page(lambda tx: rounds.loop(tx, door.config))

    @routes.get("/v1/loop")
    async def loop() -> rounds.LoopPage:
        return await loop_page()

    @routes.get("/v1/loop/rounds/{number}")
    async def one_round(number: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> rounds.ShownRound:
        found = await door.read(lambda tx: rounds.one(tx, number))
        if found is None:
            raise ApiError(404, f"round {number} does not exist", param="number")
        return found

    @routes.post("/v1/loop/run", response_model=Acted, responses=LATER)
    async def run() -> Response:
        return await _ask(door, Act.RUN)

    @routes.post("/v1/loop/abort", response_model=Acted, responses=LATER)
    async def abort(round: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None) -> Response:
        return await _ask(door, Act.END, None if round is None else str(round))

    @routes.get("/v1/adapters")
    async def every_adapter() -> adapters.AdapterPage:
        return await door.read(lambda tx: adapters.page(tx, door.config))

    @routes.get("/v1/rollout")
    async def rollout() -> rollouts.RolloutPage:
        return await door.read(lambda tx: rollouts.page(tx, door.config))

    @routes.post("/v1/rollout/{action}", response_model=Acted, responses=LATER)
    async def steer(
        action: str,
        rollout: Annotated[str | None, Query(max_length=64)] = None,
        champion: Annotated[str | None, Query(max_length=255)] = None,
        candidate: Annotated[str | None, Query(max_length=255)] = None,
    ) -> Response:
        """`rollout` is the one that is meant, `candidate` the adapter that approve and reject mean, `champion` the one
        that a rollback leaves: it must be named."""
        if action not in ON_ROLLOUTS:
            raise ApiError(404, f"rollout action {short(action)} does not exist; use one of: {', '.join(ON_ROLLOUTS)}")
        if action in requests.ON_CANDIDATE:
            return await _ask(door, Act(action), candidate)
        if action != Act.ROLLBACK:
            return await _ask(door, Act(action), rollout)
        if champion is None:
            words = "a rollback names the champion to leave (?champion=NAME), so that asked twice it is done once"
            raise ApiError(422, words, param="champion")
        return await _ask(door, Act.ROLLBACK, champion)

    return routes


async def _ask(door: Door, act: Act, target: str | None = None) -> Response:
    """Leave a request for the controller and wait for its answer for a while."""
    request = await door.write(lambda tx: requests.ask(tx, act, time.time(), target, EXPIRES_S))
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        answer = await door.read(lambda tx: requests.answered(tx, request))
        if isinstance(answer, Refused):
            raise ApiError(409, f"refused: {answer.words}", code="conflict")
        if answer is not None:
            return JSONResponse(asdict(Acted(act, answer.words)))
        await asyncio.sleep(0.1)
    left = EXPIRES_S - ANSWER_S
    words = f"accepted; the controller has not handled it yet, and will not if it is away for another {left:.0f} s"
    return JSONResponse(asdict(Acted(act, words)), 202)
