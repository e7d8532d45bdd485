"""GET /v1/loop and what operators ask of it: POST /v1/loop/run, GET and POST /v1/rollout."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from kto_ray.records.keys import Principal
from kto_ray.records.requests import MEANS, Act, Refused
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError, short
from kto_ray.status import adapters, rollouts, rounds
from kto_ray.store import requests

ON_ROLLOUTS = tuple(act for act in MEANS if act is not Act.END)
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
    async def run(request: Request) -> Response:
        _takes(request, Act.RUN)
        return await _ask(door, Act.RUN)

    @routes.post("/v1/loop/abort", response_model=Acted, responses=LATER)
    async def abort(request: Request, round: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None) -> Response:
        _takes(request, Act.END)
        return await _ask(door, Act.END, None if round is None else str(round))

    @routes.get("/v1/adapters")
    async def every_adapter() -> adapters.AdapterPage:
        return await door.read(lambda tx: adapters.page(tx, door.config))

    @routes.get("/v1/rollout")
    async def rollout() -> rollouts.RolloutPage:
        return await door.read(lambda tx: rollouts.page(tx, door.config))

    @routes.post("/v1/rollout/{action}", response_model=Acted, responses=LATER)
    async def steer(
        request: Request,
        action: str,
        rollout: Annotated[str | None, Query(max_length=64)] = None,
        champion: Annotated[str | None, Query(max_length=255)] = None,
        candidate: Annotated[str | None, Query(max_length=255)] = None,
        why: Annotated[str | None, Query(max_length=255)] = None,
    ) -> Response:
        """`rollout` is the one that promote, abort, pause and resume mean, `candidate` the adapter that approve and
        reject mean, `champion` the one that a rollback leaves: it must be named. `why` is for what reason
        reset-budget is asked: it must be given, and stays on record with who asks. An act takes its own alone."""
        if action not in ON_ROLLOUTS:
            raise ApiError(404, f"rollout action {short(action)} does not exist; use one of: {', '.join(ON_ROLLOUTS)}")
        act = Act(action)
        _takes(request, act)
        if act is Act.ROLLBACK and champion is None:
            words = "a rollback names the champion to leave (?champion=NAME), so that asked twice it is done once"
            raise ApiError(422, words, param="champion")
        if act is Act.RESET_BUDGET:
            who: Principal = request.state.principal
            return await _ask(door, act, _reason(why), who.name or "operator")
        return await _ask(door, act, {"rollout": rollout, "champion": champion, "candidate": candidate}[MEANS[act]])

    return routes


def _takes(request: Request, act: Act) -> None:
    """Passing over what narrows an act would do something else than what was meant.

    Raises:
        ApiError: 422, a parameter that is not the act's.
    """
    own = MEANS.get(act)
    for name in request.query_params:
        if name != own:
            takes = f"takes the parameter {own} alone" if own is not None else "takes no parameter"
            raise ApiError(422, f"POST {request.url.path} {takes}, got {short(name)}", param=name[:80])


def _reason(why: str | None) -> str:
    """Raises:
    ApiError: 422, it is none, or no single line of text.
    """
    if why is None or not why.strip() or not why.isprintable():
        words = "a reset of the error budget says why (?why=TEXT, of printable characters), for the record"
        raise ApiError(422, words, param="why")
    return why.strip()


async def _ask(door: Door, act: Act, target: str | None = None, who: str | None = None) -> Response:
    """Leave a request for the controller and wait for its answer for a while."""
    request = await door.write(lambda tx: requests.ask(tx, act, time.time(), target, EXPIRES_S, who))
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
