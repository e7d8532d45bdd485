"""One answer on its way from the engine to the client, and the row that it leaves, however it ends."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.types import Receive, Scope, Send

from kto_ray.rollout.assignment import Route, uncounted
from kto_ray.rollout.ratings import asks
from kto_ray.serve.gateway import engine, whose
from kto_ray.serve.gateway.bodies import ChatAsk
from kto_ray.serve.gateway.capture import DONE, Capture, said
from kto_ray.serve.gateway.conversations import Untold
from kto_ray.serve.gateway.door import Door
from kto_ray.serve.gateway.errors import ApiError
from kto_ray.serve.gateway.guard import begin_chat, user_of

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 2  # a request that kills its replica is given one more
PATIENT_S = 30.0  # that it is asked again where a replica lacks its version, and another holds it


async def answer_to(door: Door, request: Request, ask: ChatAsk, kind: str) -> Answer:
    """
    Args:
        kind: what its id begins with.

    Raises:
        ApiError: 404, the model is not served here; 429, this user asks too often; 429 and 503, too many chats are
            under way.
    """
    ask = replace(ask, user=user_of(request, ask.user))
    return Answer(door, request, ask, await _routed(door, ask), kind)


async def _routed(door: Door, ask: ChatAsk) -> Route:
    """As drawn for its user; within a conversation, as that goes on. Where nobody can tell in time whether it does, the
    turn counts for nothing, whichever arm its user is of.

    Raises:
        ApiError: 404, the model is not served here.
    """
    view, name = door.view, door.config.model.served_name
    drawn = view.route(ask.model, ask.user, name)
    if ask.model != name or ask.user is None or ask.external is None or not view.splits(ask.user):
        return drawn
    try:
        conversation = await door.conversations.of(ask.user, ask.external)
    except Untold:
        return uncounted(drawn)
    return drawn if conversation is None else view.go_on(drawn, conversation)


def _solicited(door: Door, name: str, ask: ChatAsk, route: Route) -> bool:
    """Whether an answer of a test asks for a thumb."""
    counts = route.rollout is not None and ask.task is None and not ask.forced
    return counts and asks(door.config.salt, name, door.config.feedback.solicit_share)


class Answer:
    """An answer from the asking to its row. Whoever made it closes it."""

    def __init__(self, door: Door, request: Request, ask: ChatAsk, route: Route, kind: str) -> None:
        """See `answer_to`."""
        name = uuid.uuid4().hex
        principal = whose.principal_of(request).name
        begin_chat(request)
        made, base = f"{kind}{name}", door.config.model.mark
        solicited = _solicited(door, made, ask, route)
        self.capture = Capture(made, ask, route, base=base, principal=principal, solicited=solicited)
        self._door, self._request = door, request
        self._events = _asked(door, ask.upstream(name), self.capture)
        self._first = ""
        self._status = "aborted"  # unless it ends otherwise
        self._told = False  # its row is written, or none is due

    @property
    def headers(self) -> dict[str, str]:
        """What names the answer to whoever judges it, and lets a browser do so."""
        made = self.capture
        key: str | None = self._request.state.key
        token = whose.token_headers(self._door.config, made.id, made.ask.user, made.principal, key)
        return {"x-kto-completion-id": made.id, **token}

    async def whole(self) -> dict[str, Any]:
        """The answer as the client gets it, once it is durable.

        Raises:
            ApiError: the engine refused or failed, the store failed, or the client left.
        """
        await self.open()
        self._status = "failed"  # unless it is stored below
        try:
            signed = self.capture.add_response(said(self._first))
            with suppress(RayError, RayServeException):
                await anext(self._events, "")  # it ends by itself: closed before, it would be cut off
            await self._store()
        except asyncio.CancelledError:
            self._status = "aborted"
            raise
        finally:
            await self.close()
        return signed

    async def open(self) -> None:
        """Wait for the first event; what goes wrong before it has a status of its own.

        Raises:
            ApiError: the engine refused or failed, or the client left.
        """
        try:
            self._first = await self._unless_left(anext(self._events, ""))
            engine.refuse(self._first)
        except BaseException as error:
            # A refusal leaves no row. A failure does, as what breaks off later: or an arm that fails at once would
            # have no faults.
            self._told = _refused(error)
            if not isinstance(error, ClientLeft | asyncio.CancelledError):
                self._status = "failed"
            await self.close()
            if isinstance(error, RayError | RayServeException):
                raise _failed(self.capture.id, error) from None
            raise

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a stream as the client gets them; those that tell its end come once it is durable.

        Raises:
            ApiError: it broke off.
        """
        held = []
        self._status = "failed"
        try:
            event = self._first
            while event:
                chunk = said(event.removeprefix("data:"))
                if "error" in chunk:
                    raise engine.refusal(chunk["error"])
                signed = self.capture.add_chunk(chunk)
                if self.capture.finish_reason is not None:
                    held.append(signed)
                elif _says(signed):
                    yield signed
                event = await anext(self._events, "")
        except (RayError, RayServeException) as error:
            raise _failed(self.capture.id, error) from None
        except (asyncio.CancelledError, GeneratorExit):
            self._status = "aborted"
            raise
        if self.capture.finish_reason is None:
            raise ApiError(503, "the answer broke off; ask again", code="broken_off")
        await self._store()
        for signed in held:
            yield signed

    async def close(self) -> None:
        """Free the engine's request, and leave a row where there is none yet."""
        if not self._told:
            self._told = True
            self._door.leave(self.capture.completion(self._status))
        await self._events.aclose()

    async def _store(self) -> None:
        self._told = True  # a client that leaves now does not stop it
        await self._door.keep(self.capture.completion("complete" if self.capture.ended else "failed"))

    async def _unless_left(self, awaited: Awaitable[T]) -> T:
        async def left() -> None:
            while (await self._request.receive())["type"] != "http.disconnect":
                pass

        waiting, leaving = asyncio.ensure_future(awaited), asyncio.ensure_future(left())
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientLeft
            return waiting.result()
        finally:
            for task in (waiting, leaving):
                task.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)


class ClientLeft(ApiError):
    """Nobody is there to be told, but an access log."""

    def __init__(self) -> None:
        super().__init__(499, "the client left before its answer began", code="client_left")


class EventStream(StreamingResponse):
    """Server-sent events of an answer, which is closed with them, whatever became of the client."""

    def __init__(self, answer: Answer, events: AsyncGenerator[str, None]) -> None:
        headers = {**answer.headers, "Cache-Control": "no-cache"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._answer, self._events = answer, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._events.aclose()
            finally:
                await self._answer.close()


def _says(chunk: dict[str, Any]) -> bool:
    """Some chunks told token ids alone, which no client waits for."""
    return any(choice.get("delta") for choice in chunk["choices"]) or not chunk["choices"]


def _refused(error: BaseException) -> bool:
    """Whether what ended an answer before its first event is no failure of who was to answer: the request is at fault,
    or too many are under way. That a client left is none either, and leaves a row."""
    if isinstance(error, ApiError):
        return error.status < 500 and not isinstance(error, ClientLeft)
    return isinstance(error, BackPressureError)


def _failed(name: str, error: RayError | RayServeException) -> ApiError:
    """Logged without its text, which may hold what a user wrote."""
    if isinstance(error, BackPressureError):
        return ApiError(503, "too many requests wait for an answer; ask again later", code="overloaded")
    log.error("completion %s broke off: %s", name, ", ".join(one.__name__ for one in type(error).__mro__[:3]))
    return ApiError(503, "the answer broke off; ask again", code="broken_off")


async def _asked(door: Door, body: Mapping[str, Any], made: Capture) -> AsyncGenerator[str, None]:
    """The policy's events, but DONE. A replica that dies before its first event, or has nothing but its own failure to
    tell, costs the client time and no error; nor does a champion that none can load any more since it was routed."""
    tries, until = 0, time.monotonic() + PATIENT_S
    while True:
        made.route, begun = _route_now(door, made), False
        adapter = made.route.adapter
        try:
            async with aclosing(door.generate(body, adapter, door.viewer.sure_of(adapter))) as events:
                async for event in events:
                    if not begun and engine.failed_itself(event):
                        elsewhere = (
                            engine.lacks(event) and time.monotonic() < until and door.view.somebody_holds(adapter)
                        )
                        tries += not elsewhere
                        if elsewhere or tries < TRIES or _route_now(door, made) != made.route:
                            log.warning("a replica failed before it answered, asking again")
                            break
                    begun = True
                    if event != DONE:
                        yield event
                else:
                    return
        except RayActorError as error:
            tries += 1
            if begun or tries >= TRIES:
                raise
            log.warning("a replica died before it answered, asking another: %s", error)


def _route_now(door: Door, made: Capture) -> Route:
    """The route of an answer that nobody has begun. It waited for a replica, perhaps, which then could not load the
    champion; who asked for that very version gets no other.

    Raises:
        ApiError: 404, that version is not served any more.
    """
    ready = door.view.ready
    if made.route.adapter != ready.champion or ready.answers == ready.champion:
        return made.route
    return door.view.route(made.ask.model, made.ask.user, door.config.model.served_name)
