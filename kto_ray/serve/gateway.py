"""The gateway: the HTTP contract. It routes chat to an adapter, logs every completion before the client sees its end,
records feedback before it is acknowledged, and shows the loop's state."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from kto_ray.config import Config
from kto_ray.serve import routing, state
from kto_ray.serve.capture import DONE, Capture, as_event
from kto_ray.serve.wire import ApiError, parse_chat, parse_feedback, parse_json
from kto_ray.store import completions, feedback, open_store, rollouts, rounds
from kto_ray.types import Completion, RolloutState

log = logging.getLogger(__name__)
api = FastAPI(title="kto_ray", docs_url=None, redoc_url=None)
T = TypeVar("T")

REFRESH_S = 0.5  # how old the routing view may be; serve.drain_s must be well above it
ROLLOUT_ACTIONS = ("promote", "abort", "pause", "resume", "rollback")


@dataclass(frozen=True, slots=True)
class View:
    """What routing needs, read from the store at once."""

    aliases: dict[str, str]
    rollout: RolloutState | None
    servable: frozenset[str]


@api.exception_handler(ApiError)
async def _api_error(_: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status)


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    shaped = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(shaped.body, status_code=error.status_code)


@api.exception_handler(sa.exc.SQLAlchemyError)
async def _store_error(_: Request, error: sa.exc.SQLAlchemyError) -> JSONResponse:
    log.error("the store failed: %s", error)
    return JSONResponse(ApiError(503, "the store cannot be reached; nothing was recorded, try again").body, 503)


# Serve pickles the class below together with what is defined above it: helpers must come first.


def _checked(text: str) -> dict[str, Any]:
    """A whole response of the policy, or its refusal as an ApiError."""
    response: dict[str, Any] = json.loads(text)
    if "error" in response:
        error = response["error"]
        status = error.get("code") if isinstance(error.get("code"), int) else 400
        raise ApiError(status, error["message"], param=error.get("param"), code=error.get("type"))
    return response


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for event in rest:
        yield event


def _lineage(tx: sa.Connection, config: Config, name: str) -> dict[str, Any]:
    from kto_ray.lineage import lineage  # Ray Data comes with it, which nothing else here needs

    return lineage(tx, config, name)


@serve.ingress(api)
class Gateway:
    """One HTTP ingress replica. It keeps no state of its own but a view of the store, at most REFRESH_S old."""

    def __init__(self, config: Config, policy: DeploymentHandle, controller: DeploymentHandle) -> None:
        self._config = config
        self._policy = policy.options(stream=True)
        self._controller = controller  # bound so that the application holds it; they meet in the store only
        self._store = open_store(config.database_url)
        self._view = self._read_view()
        threading.Thread(target=self._refresh_forever, daemon=True).start()

    # ---- chat

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        body = parse_json(await request.body())
        ask = parse_chat(body, request.headers)
        name = uuid.uuid4().hex
        capture = Capture(f"chatcmpl-{name}", ask, self._route(ask.model, ask.user))
        upstream = {**body, "request_id": name}
        if ask.stream:
            upstream["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        events = self._answer(upstream, capture.route.adapter)
        first = await anext(events)
        if not first.startswith("data:"):  # a whole response, or the engine's refusal
            response = _checked(first)
            signed = capture.add_response(response)
            await self._log(capture.completion("complete"))
            return JSONResponse(signed, headers={"x-kto-completion-id": capture.id})
        return StreamingResponse(
            self._stream(capture, first, events),
            media_type="text/event-stream",
            headers={"x-kto-completion-id": capture.id, "Cache-Control": "no-cache"},
        )

    async def _answer(self, body: dict[str, Any], adapter: str) -> AsyncIterator[str]:
        """The policy's events. A replica that dies before its first event costs the client time, not an error."""
        while True:
            begun = False
            try:
                async for event in self._policy.generate.remote(body, adapter):
                    begun = True
                    yield event
                return
            except RayActorError as error:
                if begun:
                    raise
                log.warning("a replica died before it answered, asking another: %s", error)

    async def _stream(self, capture: Capture, first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
        """Forward events; hold back the end (finish reason, usage, DONE) until the completion is durable."""
        held: list[str] = []
        status = "failed"
        try:
            async for event in _chain(first, events):
                if event == DONE:
                    break
                chunk = json.loads(event.removeprefix("data:"))
                if "error" in chunk:
                    yield as_event(chunk)
                    return
                signed = capture.add_chunk(chunk)
                if capture.finish_reason is None:
                    yield as_event(signed)
                elif signed["choices"] or capture.ask.wants_usage:
                    held.append(as_event(signed))
            status = "complete"
            await self._log(capture.completion(status))
            for event in held:
                yield event
            yield DONE
        except (asyncio.CancelledError, GeneratorExit):
            status = "aborted" if status == "failed" else status
            raise
        except (RayActorError, sa.exc.SQLAlchemyError) as error:
            log.error("completion %s broke off: %s", capture.id, error)
            yield as_event(ApiError(503, "the answer broke off; ask again").body)
        finally:
            if status != "complete":
                self._log_in_background(capture.completion(status))

    def _log_in_background(self, completion: Completion) -> None:
        """A partial answer is worth a row, but nobody waits for it."""
        threading.Thread(target=self._insert, args=(completion,)).start()

    async def _log(self, completion: Completion) -> None:
        # Shielded: a client that leaves while its answer is being written must not lose the row.
        await asyncio.shield(asyncio.to_thread(self._insert, completion))

    def _insert(self, completion: Completion) -> None:
        with self._store.write() as tx:
            completions.insert(tx, completion)

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        view = self._view
        name = self._config.model.served_name
        ids = [name, *(f"{name}@{alias}" for alias in sorted(view.aliases)), *sorted(view.servable)]
        return {
            "object": "list",
            "data": [{"id": i, "object": "model", "created": 0, "owned_by": "kto_ray"} for i in dict.fromkeys(ids)],
        }

    # ---- feedback

    @api.post("/v1/feedback")
    async def give_feedback(self, request: Request) -> Response:
        event = parse_feedback(parse_json(await request.body()), request.headers.get("idempotency-key"))
        try:
            receipt = await self._write(lambda tx: feedback.record(tx, event))
        except feedback.KeyReused as error:
            raise ApiError(409, str(error), param="Idempotency-Key", code="idempotency_key_reused") from None
        status = {"recorded": 201, "pending": 202, "duplicate": 200}[receipt.status]
        return JSONResponse(asdict(receipt), status_code=status)

    @api.delete("/v1/feedback/{feedback_id}")
    async def withdraw_feedback(self, feedback_id: str) -> dict[str, Any]:
        if not await self._write(lambda tx: feedback.withdraw(tx, feedback_id, time.time())):
            raise ApiError(404, f"feedback {feedback_id!r} does not exist", param="feedback_id")
        return {"feedback_id": feedback_id, "status": "withdrawn"}

    @api.get("/v1/completions/{completion_id}")
    async def completion(self, completion_id: str) -> dict[str, Any]:
        found = await self._read(lambda tx: completions.get(tx, completion_id))
        if found is None:
            raise ApiError(404, f"completion {completion_id!r} does not exist", param="completion_id")
        log_of = await self._read(lambda tx: feedback.events(tx, completion_id))
        return {**asdict(found), "feedback": [asdict(event) for event in log_of]}

    @api.get("/v1/lineage/{name:path}")
    async def lineage(self, name: str) -> dict[str, Any]:
        try:
            return await self._read(lambda tx: _lineage(tx, self._config, name))
        except ValueError as error:
            raise ApiError(404, str(error), param="name") from None

    # ---- the loop

    @api.get("/v1/loop")
    async def loop(self) -> dict[str, Any]:
        return await self._read(lambda tx: state.loop(tx, self._config))

    @api.post("/v1/loop/run")
    async def run_loop(self) -> Response:
        return await self._ask("run")

    @api.get("/v1/adapters")
    async def adapters(self) -> dict[str, Any]:
        return await self._read(lambda tx: state.adapter_list(tx, self._config))

    @api.get("/v1/rollout")
    async def rollout(self) -> dict[str, Any]:
        return await self._read(lambda tx: state.rollout(tx, self._config))

    @api.post("/v1/rollout/{action}")
    async def change_rollout(self, action: str) -> Response:
        if action not in ROLLOUT_ACTIONS:
            raise ApiError(404, f"rollout action {action!r} does not exist; use one of: {', '.join(ROLLOUT_ACTIONS)}")
        return await self._ask(action)

    async def _ask(self, action: str) -> Response:
        """Leave a request for the controller and wait for its answer for a while."""
        request = await self._write(lambda tx: rounds.ask(tx, action, time.time()))
        for _ in range(100):
            result = await self._read(lambda tx: rounds.answered(tx, request))
            if result is not None:
                if result.startswith("refused"):
                    raise ApiError(409, result, code="conflict")
                return JSONResponse({"action": action, "result": result})
            await asyncio.sleep(0.1)
        return JSONResponse({"action": action, "result": "accepted; the controller has not handled it yet"}, 202)

    # ---- operation

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "alive"}

    @api.get("/readyz")
    async def readyz(self) -> Response:
        told = await self._read(lambda tx: state.readiness(tx, self._config))
        return JSONResponse(told, status_code=200 if told["ready"] else 503)

    @api.get("/metrics")
    async def metrics(self) -> Response:
        text = await asyncio.to_thread(state.metrics, self._store, self._config)
        return Response(text, media_type="text/plain; version=0.0.4")

    # ---- inside

    def _route(self, model: str, user: str | None) -> routing.Route:
        view = self._view
        try:
            return routing.route(model, user, self._config.model.served_name, view.aliases, view.rollout, view.servable)
        except routing.UnknownModel as error:
            raise ApiError(404, str(error), param="model", code="model_not_found") from None

    def _read_view(self) -> View:
        with self._store.read() as tx:
            live = rollouts.live_replicas(tx, time.time() - self._config.serve.heartbeat_timeout_s)
            held = [set(replica.held) for replica in live]
            common = set.intersection(*held) if held else set()
            return View(
                state.aliases(tx, self._config), rollouts.live(tx), frozenset(common | {self._config.base_name})
            )

    def _refresh_forever(self) -> None:
        while True:
            time.sleep(REFRESH_S)
            try:
                self._view = self._read_view()
            except sa.exc.SQLAlchemyError as error:  # routing goes on with the last view
                log.warning("the store cannot be read: %s", error)

    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        def run() -> T:
            with self._store.read() as tx:
                return query(tx)

        return await asyncio.to_thread(run)

    async def _write(self, change: Callable[[sa.Connection], T]) -> T:
        def run() -> T:
            with self._store.write() as tx:
                return change(tx)

        return await asyncio.shield(asyncio.to_thread(run))
