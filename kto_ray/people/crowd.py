"""The crowd: simulated users who chat and judge over HTTP, with the unchanged `openai` client.

Every request is counted once and never retried; a non-2xx answer, an exception, a stream without an end and an answer
that mixes adapters are failures. What each user asks and presses follows from the seed, whatever the scheduling.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from itertools import islice
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAIError

from kto_ray.people.tastes import (
    Ask,
    Habits,
    Reaction,
    Taste,
    User,
    ask,
    react,
    users,
)
from kto_ray.people.turns import Answer, DemoStopped, Sampling, Tally, Turn

POPULATION = 5000  # users who may ever turn up; each turns up in one phase only, so later phases are fresh
TIMEOUT_S = 180.0  # of one request
HOPELESS = 25  # failures after which going on proves nothing more


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run all at once; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


class Crowd:
    """Users of one service. Use as an async context manager.

    Args:
        url: the service, such as http://127.0.0.1:8000.
        model: the served name that is A/B-routed.
        resend: share of judgements sent twice, as clients do that lost the first reply.
        streaming: share of chats that stream.
    """

    def __init__(
        self,
        url: str,
        model: str,
        taste: Taste,
        seed: int,
        sampling: Sampling,
        habits: Habits,
        resend: float = 0.05,
        streaming: float = 0.2,
    ) -> None:
        self.model, self.taste, self.seed = model, taste, seed
        self.sampling, self.habits, self.resend, self.streaming = sampling, habits, resend, streaming
        self.arrivals: Iterator[User] = iter(users(POPULATION, seed))
        self.turns: list[Turn] = []
        self.tally = Tally()
        self.opened_at = time.monotonic()
        limits = httpx.Limits(max_connections=128, max_keepalive_connections=64)
        self.http = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits)
        self.openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="demo", max_retries=0, timeout=TIMEOUT_S)

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.openai.close()
        await self.http.aclose()

    async def run(self, phase: str, concurrency: int, chats: int, most: int, enough: asyncio.Event) -> None:
        """Let fresh users come, `concurrency` at a time, until `enough` is set or `most` have come.

        Each chats until `chats` chats are done; with `chats` 0, until the first judgement.
        """
        coming = islice(self.arrivals, most)

        async def seat() -> None:
            for user in coming:
                if enough.is_set():
                    return
                await self.visit(user, phase, chats, enough)

        await together(*(seat() for _ in range(concurrency)))

    async def visit(self, user: User, phase: str, chats: int, enough: asyncio.Event) -> None:
        """One user's chats, one after another; ends early when a chat fails or `enough` is set."""
        rng = random.Random(f"{self.seed}/{user.id}")
        judged = False
        for _ in range(chats or 10):
            turn = await self._turn(user, phase, not judged, rng)
            if turn is None or enough.is_set() or (chats == 0 and turn.up is not None):
                return
            judged = judged or turn.up is not None

    async def _turn(self, user: User, phase: str, first: bool, rng: random.Random) -> Turn | None:
        question = ask(self.taste, user, rng)
        stream, sampling_seed = rng.random() < self.streaming, rng.getrandbits(31)
        answer = await self.chat(question.prompt, self.model, user.id, sampling_seed, stream)
        if answer is None:
            return None
        reaction = react(self.taste, question, answer.text, rng, self.habits)
        if reaction.kind != "nothing":
            await self.judge(answer, user, reaction, resend=rng.random() < self.resend)
        turn = _turn_of(self.taste, question, answer, reaction, phase, first, time.monotonic() - self.opened_at)
        self.turns.append(turn)
        return turn

    async def chat(self, prompt: str, model: str, user: str, seed: int, stream: bool = False) -> Answer | None:
        """One chat completion; None, and one failure more, when it did not come back whole."""
        try:
            answer = await (self._streamed if stream else self._plain)(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                user=user,
                seed=seed,
                max_tokens=self.sampling.max_tokens,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
            )
        except (OpenAIError, httpx.HTTPError, ValueError) as error:
            answer = None
            self._fail(f"chat of {user}{' (streamed)' if stream else ''}: {type(error).__name__}: {error}")
        self.tally.chat += 1
        self.tally.streamed += stream
        self._give_up_if_hopeless()
        return answer

    async def _plain(self, **request: Any) -> Answer:
        got = await self.openai.chat.completions.create(**request)
        choice = got.choices[0] if got.choices else None
        if choice is None or choice.finish_reason is None or got.system_fingerprint is None:
            raise ValueError(f"incomplete answer: {got.model_dump_json()[:200]}")
        return Answer(got.id, choice.message.content or "", got.system_fingerprint, choice.finish_reason)

    async def _streamed(self, **request: Any) -> Answer:
        text, finish, ids, adapters = "", None, set(), set()
        async for chunk in await self.openai.chat.completions.create(**request, stream=True):
            ids.add(chunk.id)
            if chunk.system_fingerprint is not None:
                adapters.add(chunk.system_fingerprint)
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        if finish is None:
            raise ValueError(f"the stream ended without a finish_reason after {len(text)} characters")
        if len(ids) != 1 or len(adapters) != 1:
            raise ValueError(
                f"the stream names completions {sorted(ids)} and adapters {sorted(adapters)}, not one of each"
            )
        return Answer(ids.pop(), text, adapters.pop(), finish)

    async def judge(self, answer: Answer, user: User, reaction: Reaction, resend: bool) -> None:
        """Send a thumb or an edit; with `resend`, once more under the same Idempotency-Key. Whoever is stopped has sent
        what they began to, or what came of it would not be known."""
        sent = asyncio.create_task(self._judge(answer, user, reaction, resend))
        try:
            await asyncio.shield(sent)
        except asyncio.CancelledError:
            await sent
            raise

    async def _judge(self, answer: Answer, user: User, reaction: Reaction, resend: bool) -> None:
        body: dict[str, Any] = {"completion_id": answer.id, "kind": reaction.kind, "user": user.id}
        if reaction.kind == "edit":
            body["text"] = reaction.text
            self.tally.edits_sent += 1
        else:
            body["value"] = reaction.up
            self.tally.thumbs_sent += 1
        key = f"{self.seed}-{answer.id}-{reaction.kind}"
        first = await self._post_feedback(body, key, (201, 202))
        if resend and first is not None:
            self.tally.resent += 1
            again = await self._post_feedback(body, key, (200,))
            if again is None:
                return
            if again["status"] == "duplicate" and again["feedback_id"] == first["feedback_id"]:
                self.tally.duplicates += 1
            else:
                self._fail(f"the same feedback under the same key got {again}, first {first}")

    async def _post_feedback(self, body: dict[str, Any], key: str, wanted: tuple[int, ...]) -> dict[str, Any] | None:
        self.tally.feedback_posts += 1
        try:
            got = await self.http.post("/v1/feedback", json=body, headers={"Idempotency-Key": key})
        except httpx.HTTPError as error:
            self._fail(f"feedback on {body['completion_id']}: {type(error).__name__}: {error}")
            return None
        if got.status_code not in wanted:
            self._fail(f"feedback on {body['completion_id']}: HTTP {got.status_code}: {got.text[:200]}")
            return None
        self.tally.pending += got.status_code == 202
        reply: dict[str, Any] = got.json()
        return reply

    async def read(self, path: str) -> dict[str, Any] | None:
        """GET a state page; None, and one failure more, when it did not come."""
        self.tally.reads += 1
        try:
            got = await self.http.get(path)
            got.raise_for_status()
        except httpx.HTTPError as error:
            self._fail(f"GET {path}: {type(error).__name__}: {error}")
            self._give_up_if_hopeless()
            return None
        page: dict[str, Any] = got.json()
        return page

    def judgements(self, *phases: str) -> list[Turn]:
        """The first judgement of every user of these phases."""
        return [turn for turn in self.turns if turn.first and turn.up is not None and turn.phase in phases]

    def _fail(self, words: str) -> None:
        self.tally.failures.append(f"{time.monotonic() - self.opened_at:.1f} s: {words}")

    def _give_up_if_hopeless(self) -> None:
        if len(self.tally.failures) >= HOPELESS:
            raise DemoStopped(f"{len(self.tally.failures)} requests failed; the last: {self.tally.failures[-1]}")


def _turn_of(
    taste: Taste, question: Ask, answer: Answer, reaction: Reaction, phase: str, first: bool, at_s: float
) -> Turn:
    up = None if reaction.kind == "nothing" else bool(reaction.up)
    return Turn(
        at_s=at_s,
        phase=phase,
        user=question.user.id,
        prompt=question.prompt,
        answer=answer.text,
        adapter=answer.adapter,
        finish_reason=answer.finish_reason,
        reaction=reaction.kind,
        up=up,
        liked=None if taste.likes is None else taste.likes(question, answer.text),
        first=first and up is not None,
    )
