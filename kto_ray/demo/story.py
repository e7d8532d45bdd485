"""The demo's story: its phases, told as they happen. Their work is bounded, not their time, which is the machine's.

before: users chat and judge -> round: the loop trains and gates a candidate -> A/B test -> after: fresh users
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from itertools import islice
from typing import Any

from kto_ray.config import Config
from kto_ray.demo.account import account
from kto_ray.demo.pace import MEASURED_ANSWERS, Patience, Plan, Stalled, minutes, pause_after, plan
from kto_ray.demo.report import (
    Report,
    machine_record,
)
from kto_ray.demo.sane import examine_apart, not_examined
from kto_ray.demo.show import Bar, Narrator
from kto_ray.demo.words import rate_words, rollout_words, round_words
from kto_ray.people.crowd import Crowd, together
from kto_ray.people.tastes import (
    Ask,
    Habits,
    Taste,
    User,
    ask,
)
from kto_ray.people.turns import DemoStopped, Sampling

HABITS = Habits()
SAMPLING = Sampling()
CHATS = 3  # of each user before the first round
CONCURRENCY = 24
BEFORE_USERS = 400  # at most; the round starts earlier, when the labels suffice
AFTER_USERS = 150
AFTER_USERS_UNCHANGED = 40  # where nothing was promoted, the rate after is told but decides nothing
READERS = ("Maya", "Omar", "Lena", "Carlos")  # they ask the questions of the side-by-side table
POLL_S = 1.0
SETTLE_S = 2.0  # after the round, until every gateway's view of the aliases is that of the store


class Story:
    """The phases of one run against the service at `url`; `tell` gives the report, whatever happened."""

    def __init__(
        self, config: Config, tuned: Report, taste: Taste, seed: int, narrator: Narrator, url: str, start_s: float
    ) -> None:
        self.config, self.taste, self.seed, self.narrator = config, taste, seed, narrator
        self.tuned = tuned  # what of the config suits a demo, for the report
        self.model = config.model.served_name
        self.crowd = Crowd(url, self.model, taste, seed, SAMPLING, HABITS)
        self.stage_s: dict[str, float] = {"start": start_s}
        self.patience = Patience()  # with the present phase
        self.standing = "just begun"  # where that stood last, for the message when it stands still
        self.questions = questions(taste, seed)
        self.answers_before: list[str] = []
        self.answers_after: list[str] = []
        self.sanity: Report = not_examined((), ())
        self.answers_per_s: float | None = None
        self.expected_s: float | None = None
        self.machine: Report = {}

    async def tell(self) -> Report:
        stopped: str | None = None
        began = time.monotonic()
        async with self.crowd:
            try:
                await self._phases()
            except DemoStopped as failed:
                stopped = str(failed)
            except asyncio.CancelledError:  # Ctrl-C; what was seen so far is reported all the same
                asyncio.current_task().uncancel()  # type: ignore[union-attr]  # this is a task
                stopped = f"ended by the user; it stood at: {self.standing}"
            if stopped is not None:
                self.narrator.say(f"Stopped: {stopped}")
            return await account(self, stopped, self.stage_s["start"] + time.monotonic() - began)

    async def _phases(self) -> None:
        await self._meet_the_machine()
        self.answers_before = await self._ask_the_same(f"{self.model}@champion")
        await self._patiently("before", self._before)
        loop = await self._patiently("round", self._round)
        await self._tell_gate(loop)
        if loop["stage"] == "rollout":
            loop = await self._patiently("ab", self._ab)
        self.narrator.say(f"      the round ended {loop['outcome']}: {loop['reason'] or 'no reason given'}")
        await asyncio.sleep(SETTLE_S)
        fresh = AFTER_USERS if loop["outcome"] == "promoted" else AFTER_USERS_UNCHANGED
        await self._patiently("after", lambda: self._after(fresh))
        self.answers_after = await self._ask_the_same(f"{self.model}@champion")
        await self._patiently("examine", self._examine)

    async def _meet_the_machine(self) -> None:
        """What the replica computes in, which whatever examines its answers takes too."""
        page = await self.crowd.read("/readyz") or {"replicas": []}
        for replica in page["replicas"][:1]:
            self.config = self.config.with_dtype(replica["dtype"])
            self.machine = machine_record(replica["dtype"], replica["dtype_why"])
            self.narrator.say(f"      it computes in {replica['dtype']}: {replica['dtype_why']}")

    async def _patiently(self, phase: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run a phase for as long as it moves, and note how long it took."""
        began, self.standing, self.patience = time.monotonic(), "just begun", Patience()
        try:
            async with self.patience:
                return await work()
        except Stalled as stalled:
            raise DemoStopped(f"phase {phase!r}: {stalled}; it stood at: {self.standing}") from None
        finally:
            self.stage_s[phase] = time.monotonic() - began

    def _show(self, bar: Bar, done: float, total: float | None, note: str, moved: Hashable = None) -> None:
        """Show where the phase stands; `moved` is what counts as movement, where that is more than `done`."""
        self.standing = note
        self.patience.moved((done, moved))
        bar.show(done, total, note)

    async def _before(self) -> None:
        """Users chat and judge until the controller starts a round by itself."""
        wanted, enough, over = self.config.loop.min_labels, asyncio.Event(), asyncio.Event()

        async def traffic() -> None:
            await self.crowd.run("before", CONCURRENCY, CHATS, BEFORE_USERS, enough)
            over.set()

        async def watch() -> None:
            began, told = time.monotonic(), False
            while not over.is_set():
                page = await self.crowd.read("/v1/loop")
                if page is not None:
                    new, turns = page["labels"]["new"], len(self.crowd.turns)
                    words = f"{new}/{wanted} labels, {rate_words(self.crowd, 'before')}"
                    self._show(bar, new, wanted, words, moved=turns)
                    if turns >= MEASURED_ANSWERS and not told:
                        told = True
                        self._tell_pace(turns / (time.monotonic() - began))
                    if page["rounds"]:
                        enough.set()
                await asyncio.sleep(POLL_S)

        with self.narrator.phase(
            "before",
            f"users chat with the base model, {CHATS} times each, and judge the answers",
            f"at {wanted} labels the loop starts a round by itself: snapshot, training, gate",
        ) as bar:
            await together(traffic(), watch())
        if not enough.is_set():
            raise DemoStopped(f"{BEFORE_USERS} users came, but no round was started; it stood at: {self.standing}")

    def _tell_pace(self, answers_per_s: float) -> None:
        self.answers_per_s = answers_per_s
        self.expected_s = demo_plan(self.config).seconds(answers_per_s)
        self.narrator.say(
            f"      this machine gives {answers_per_s:.1f} answers/s; the whole takes about {minutes(self.expected_s)}"
        )

    async def _round(self) -> Report:
        """The candidate is trained and gated while a few users go on chatting; gives the round."""
        enough = asyncio.Event()
        with self.narrator.phase(
            "round",
            "a snapshot is sealed, KTO trains a LoRA adapter, the gate examines it",
            "an A/B test, if the gate agrees",
        ) as bar:
            found: list[Report] = []

            async def watch() -> None:
                found.append(await self._watch_round(bar, ("rollout", "done")))
                enough.set()

            await together(self._trickle("round", enough), watch())
        return found[0]

    async def _watch_round(self, bar: Bar, ends: tuple[str, ...]) -> Report:
        """Poll the first round until it reaches one of these stages."""
        while True:
            page = await self.crowd.read("/v1/loop")
            if page is not None:
                this = _first(page)
                self._show(bar, *round_words(this, page["next"]), moved=(this["stage"], this["attempts"]))
                if this["stage"] in ends:
                    return this
            await asyncio.sleep(POLL_S)

    async def _trickle(self, phase: str, enough: asyncio.Event) -> None:
        while not enough.is_set():
            began = time.monotonic()
            for user in islice(self.crowd.arrivals, 1):
                await self.crowd.visit(user, phase, 1, enough)
            with suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), pause_after(time.monotonic() - began))

    async def _tell_gate(self, this: Report) -> None:
        adapters = (await self.crowd.read("/v1/adapters") or {}).get("adapters", [])
        gate = next((a["gate"] for a in adapters if a["name"] == this["adapter"] and a.get("gate")), None)
        if gate is None:
            self.narrator.say(f"      no verdict of the gate: the round stands at {this['stage']}, {this['reason']}")
            return
        self.narrator.say(f"      gate on {this['adapter']}: {gate['decision']}")
        for reason in gate["reasons"]:
            self.narrator.say(f"        - {reason}")

    async def _ab(self) -> Report:
        """New users come, one judgement each, until the sequential test has decided; gives the ended round."""
        enough, most = asyncio.Event(), self.config.rollout.max_users
        with self.narrator.phase(
            "A/B",
            f"new users are split, champion against challenger; at most {most} judge",
            "fresh users on the winner",
        ) as bar:
            found: list[Report] = []

            async def watch() -> None:
                while await self._look_at_rollout(bar, most) in (None, "running", "paused"):
                    await asyncio.sleep(POLL_S)
                enough.set()
                found.append(await self._watch_round(bar, ("done",)))

            await together(self.crowd.run("ab", CONCURRENCY, 0, 3 * most, enough), watch())
        return found[0]

    async def _look_at_rollout(self, bar: Bar, most: int) -> str | None:
        """Show the newest rollout; gives its status."""
        page = await self.crowd.read("/v1/rollout")
        live: Report | None = page and page["rollout"]
        if live is None:
            return None
        judged, words = rollout_words(live)
        self._show(bar, judged, most, words, moved=len(self.crowd.turns))
        return str(live["status"])

    async def _after(self, most: int) -> None:
        """Fresh users, none of whom any adapter was trained on."""
        with self.narrator.phase(
            "after", f"{most} fresh users chat with the champion, one judgement each", "the verdict"
        ) as bar:
            over = asyncio.Event()

            async def traffic() -> None:
                await self.crowd.run("after", CONCURRENCY, 0, most, asyncio.Event())
                over.set()

            def show() -> None:
                judged = len(self.crowd.judgements("after"))
                words = f"{judged}/{most} users, {rate_words(self.crowd, 'after')}"
                self._show(bar, judged, most, words, moved=len(self.crowd.turns))

            async def watch() -> None:
                while not over.is_set():
                    show()
                    await asyncio.sleep(POLL_S)

            await together(traffic(), watch())
            show()

    async def _examine(self) -> None:
        """Ask the gate again, on fresh answers; without a new champion only tell how the answers look."""
        before = [turn for turn in self.crowd.turns if turn.phase in ("before", "round")]
        after = [turn for turn in self.crowd.turns if turn.phase == "after"]
        page = await self.crowd.read("/v1/adapters") or {"aliases": {}, "adapters": []}
        champion = next((a for a in page["adapters"] if a["name"] == page["aliases"]["champion"]), None)
        if champion is None or not before or not after:
            self.sanity = not_examined(before, after)
            return
        with self.narrator.phase("examine", "the gate measures the champion's fresh answers", "the verdict") as bar:
            self._show(bar, 0, None, "scoring answers under the base model and the champion")
            self.sanity = await asyncio.to_thread(examine_apart, self.config, champion, before, after)

    async def _ask_the_same(self, model: str) -> list[str]:
        """The fixed questions, each with its own fixed seed; pinned to an alias, so they count in no test."""
        asked = enumerate(self.questions)
        got = await asyncio.gather(*(self.crowd.chat(a.prompt, model, a.user.id, seed=i) for i, a in asked))
        return ["(no answer)" if answer is None else answer.text for answer in got]


def demo_plan(config: Config) -> Plan:
    """The work of a demo with these settings, for those who want to know how long it takes."""
    return plan(config.loop.min_labels, config.data.holdout_share, config.kto.micro_batch, AFTER_USERS)


def questions(taste: Taste, seed: int) -> list[Ask]:
    """The questions of the side-by-side table."""
    rng = random.Random(f"{seed}/questions")
    return [ask(taste, User(f"reader-{seed}-{i}", name), rng) for i, name in enumerate(READERS)]


def _first(loop: Report) -> Report:
    """The demo's round: the first."""
    this: Report = min(loop["rounds"], key=lambda this: int(this["id"]))
    return this
