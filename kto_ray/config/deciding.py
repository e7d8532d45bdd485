"""The gate and the rollout: what is decided of a candidate, by its figures and by its users."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from kto_ray.config.base import Hours, Section, Share
from kto_ray.config.judging import JudgeSection

WEEK_HOURS = 168
GuardName = Literal[
    "failed", "aborted", "cut_off", "slow", "tool_error", "asked_back", "long", "regenerated", "disagreed", "edited"
]
REACTIONS = ("regenerated", "disagreed", "edited")  # guards by what users do within rollout.settle_hours
BURN_IN = "burn-in"  # the stage that rollout.burn_in_hours make
STORED = {"stored": True}  # context of rules that a test began with: what is refused as hopeless alone can be read
STAFF_ALIASES = ("champion", "challenger", "previous", "base")


def _guards(section: Mapping[str, Any]) -> tuple[GuardName, ...]:
    """All that can be judged: without settle_hours nobody has the time to react."""
    every: tuple[GuardName, ...] = get_args(GuardName)
    return tuple(name for name in every if name not in REACTIONS or section.get("settle_hours") != 0)


class GateSection(Section):
    """Thresholds that a candidate must keep; evaluate/gate.py says what each means."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = (
        0.75  # of the bootstrap intervals, two-sided: one in eight lucky
    )
    bootstrap: int = Field(2000, ge=200)
    min_holdout: int = Field(20, ge=2)  # held-out rows, of both classes together
    min_holdout_users: int = Field(15, ge=2)  # whose rows these are: of fewer, the bootstrap's interval is too narrow
    max_holdout: int = Field(1000, ge=20)  # rows that are scored; a fixed random subset of more
    min_auc: Annotated[float, Field(ge=0, lt=1)] = 0.5  # the interval's lower end must lie above it
    # AUC over the champion's (the base model's is 0.5), within strata of like answer length: the same
    min_auc_gain: Annotated[float, Field(ge=-1, lt=1)] = 0.0
    length_strata: int = Field(5, ge=1)
    # How far from one half the AUC of length alone must surely lie for length to be what users judge by; then there are
    # no strata, in which such a taste could not be seen
    length_taste: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    max_kl_base: float = Field(0.75, gt=0)  # nats per token on the candidate's own guard answers
    max_kl_champion: float = Field(1.0, gt=0)
    min_length_ratio: float = Field(0.15, ge=0)  # candidate's mean answer length over the champion's
    max_length_ratio: float = Field(3.0, gt=0)
    max_base_nll_rise: float = Field(0.75, gt=0)  # nats per token: how much odder base finds its answers
    max_repetition: Share = 0.25  # rise of the share of guard answers that repeat themselves over the champion's
    max_empty: Share = 0.05
    max_truncated_rise: Share = 0.25  # rise of the truncated share over the champion's
    guard_max_tokens: int = Field(64, ge=8)
    # Of ours, that both are asked; fewer are a fixed, even choice of them. A team's own are asked all, with them
    guard_prompts: int = Field(200, ge=2)
    # Of these under way together. They yield to what users ask, but all that runs shares the processor
    guard_at_once: int = Field(4, ge=1)
    suites: tuple[str, ...] = ()  # YAML files of a team's own prompts with checks, as evaluate/suites.py says
    suite_level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # of both exact tests on the checks
    # The share of checks by which it may fail more than the champion; that it does not must be shown. 16 prompts
    # show 0.18 at best
    suite_margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    judge: JudgeSection | None = None

    @field_validator("suites")
    @classmethod
    def _absolute(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        """The gate runs in a worker, which has a directory of its own."""
        return tuple(str(Path(file).expanduser().absolute()) for file in files)

    @model_validator(mode="after")
    def _bounds_fit(self) -> GateSection:
        for least, most in (
            ("min_holdout", "max_holdout"),
            ("min_holdout_users", "max_holdout"),
            ("min_length_ratio", "max_length_ratio"),
        ):
            if (low := getattr(self, least)) > (high := getattr(self, most)):
                raise ValueError(
                    f"{least} is {low:g}, and {most} {high:g}: no candidate could pass; lower {least} or raise {most}"
                )
        return self

    @model_validator(mode="after")
    def _enough_is_asked(self) -> GateSection:
        """How many prompts a team's own suites have, only their files tell: evaluate/suites.py."""
        if not self.suites:
            self.demand_checks(self.guard_prompts)
        if self.judge is None or self.judge.min_win_rate is None:
            return self
        pairs = self.judge.prompts if self.suites else min(self.judge.prompts, self.guard_prompts)
        shown = ((1 - self.confidence) / 2) ** (1 / pairs)  # Clopper and Pearson's lower end where all are won
        if self.judge.min_win_rate > shown:
            raise ValueError(
                f"judge.min_win_rate is {self.judge.min_win_rate:g}, and who wins all of {pairs} prompts is shown to "
                f"win {math.floor(1000 * shown) / 1000:g} of them: no candidate could pass; lower it, or raise "
                "judge.prompts or guard_prompts"
            )
        return self

    def demand_checks(self, checks: int) -> None:
        """Make sure that so many checks can show `suite_margin`. The exact test's p-value of a candidate that loses and
        wins none is at least (1 - margin)^checks, the chance that one which fails more by the margin is as lucky.

        Raises:
            ValueError: they cannot.
        """
        if (1 - self.suite_margin) ** checks <= self.suite_level:
            return
        fewest = math.ceil(math.log(self.suite_level) / math.log1p(-self.suite_margin))
        margin = math.ceil(100 * (1 - self.suite_level ** (1 / checks))) / 100
        raise ValueError(
            f"{checks} guard prompts cannot show that a candidate fails no more than suite_margin "
            f"{self.suite_margin:g} of them, not even one that fails none: no candidate as good as the champion could "
            f"pass; set guard_prompts to {fewest} or more, or suite_margin to {margin:g} or more"
        )


class RolloutStage(Section):
    name: str = Field(min_length=1)
    weight: Annotated[float, Field(gt=0, lt=1)]  # the challenger's share of users
    decides: bool = False  # only a deciding stage may promote; the others only watch for harm
    # A watching stage ends, if it saw no harm, after so many of the challenger's users got an answer (None: however
    # many), or so many hours
    exposed: int | None = Field(200, ge=1)
    hours: Hours = Field(4.0, gt=0)


class RolloutSection(Section):
    """The A/B test: who counts, when a stage ends, and how much may go wrong. A test goes on under the rules that it
    began with."""

    stages: tuple[RolloutStage, ...] = (
        RolloutStage(name="canary", weight=0.1),
        RolloutStage(name="ab", weight=0.5, decides=True),
    )
    # Over the life of the loop: the share of promotions that are no gain, and how much of what is left one test takes
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    omega: Annotated[float, Field(gt=0, lt=1)] = 0.05
    harm_alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # chance that a challenger is ended as worse and is not
    min_effect: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the gain that must be exceeded
    # A user's trial is settled so long after their first answer in the deciding stage: what stands then counts for
    # good. 0: with the first judgement, and nobody has the time for what `guards` would see of reactions
    settle_hours: Hours = Field(24.0, ge=0)
    # Which users count who came since the test began, when names are free: those of the applications named here, by
    # their principals' names (`kto-ray keys`), which vouch for theirs. true: all; false: none
    new_users: bool | tuple[str, ...] = False
    min_users: int = Field(100, ge=1)  # settled trials of each arm before the deciding stage may promote
    max_users: int = Field(20_000, ge=20)  # settled trials of both arms; then the deciding stage ends
    min_hours: Hours = Field(48.0, ge=0)  # of the deciding stage
    # Before the deciding stage, with its share of users, and of its hours: a stage of its own, burn-in, that watches
    # for harm, and of which nobody counts towards a gain. What pleases only while it is new has worn off by then
    burn_in_hours: Hours = Field(0.0, ge=0)
    max_hours: Hours = Field(336.0, gt=0)
    # What may not become more frequent among users than with the champion; records/trials.py says what each is. All,
    # but what users do about answers where settle_hours is 0
    guards: tuple[GuardName, ...] = Field(default_factory=_guards)
    # By how much it may: to promote, it is shown to be less. In points. A first answer that asks back or is long may be
    # what users like: of these it is another figure, and they are harm from there on only, others from any rise on
    max_fault_rise: Annotated[float, Field(gt=0, le=1)] = 0.05
    max_style_rise: Annotated[float, Field(gt=0, le=1)] = 0.1
    slow_s: float = Field(10.0, gt=0)  # to the first token: an answer after that begins late
    # An answer of more tokens is long, its thought counted in: users wait for both. 1000 are some two pages, which few
    # answers of a chat have; where many do, name what one in ten of the champion's exceeds. None: nothing is long
    long_tokens: int | None = Field(1000, ge=1)
    # After a promotion so many users stay on the previous champion, drawn anew each week: should that be better after
    # all, it comes back by itself. 0: nobody watches
    holdback: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    # Once there is a champion, so many users stay on the base model, drawn anew each week, for as long as the loop goes
    # on: what the whole loop gains is measured on them. 0: it is not
    base_holdback: Annotated[float, Field(ge=0, le=0.2)] = 0.01
    # Who always gets what an alias (champion, challenger, previous, base) or a version (policy@v7-3fa9c1) names, in no
    # arm of anything: users by their stored names, or all of an application, as NAME/*
    staff: Mapping[str, str] = Field({}, repr=False)
    # A test that cannot show a gain as small as this in 80% of cases, at the rate at which users judge of late, asks a
    # person before it begins. 1: it never asks
    max_detectable: Annotated[float, Field(gt=0, le=1)] = 0.15
    unequal_alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.01  # chance that fair arms are taken for an unfair split
    # Pause for a person, do not abort. Whoever resumes has answered for the stage: it goes on in spite of it, and where
    # its hours had run out, for as many again
    ask: tuple[Literal["harm", "faults", "futility", "users", "hours"], ...] = ()
    max_paused_hours: Hours = Field(168.0, gt=0)  # then a paused test ends

    @field_validator("staff")
    @classmethod
    def _named(cls, staff: Mapping[str, str]) -> Mapping[str, str]:
        for who, wanted in staff.items():
            if not re.fullmatch(r"[^*/]+/\*|[^*/]+(/[^*]+)?", who):
                raise ValueError(
                    f"{who!r} names nobody; name a user as the store does ('app/alice'; 'alice' where there are no "
                    "keys), or all users of an application, as 'app/*'"
                )
            told = f"{who!r} is to get {wanted!r}, which is"
            if (alias := wanted.rpartition("@")[2]) in STAFF_ALIASES and alias != wanted:
                raise ValueError(f"{told} a request's name for an alias; here it stands alone: {alias}")
            if wanted not in STAFF_ALIASES and not re.fullmatch(r"[^@]+@v[0-9]+-[0-9a-f]{6}", wanted):
                raise ValueError(
                    f"{told} no alias ({', '.join(STAFF_ALIASES)}) and no version; "
                    "GET /v1/models lists those, as policy@v7-3fa9c1"
                )
        return staff

    @field_validator("new_users")
    @classmethod
    def _applications(cls, new_users: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        for name in new_users if isinstance(new_users, tuple) else ():
            if not name or set("/*") & set(name):
                raise ValueError(
                    f"{name!r} is no application; name each by the principal of its key, as `kto-ray keys list` has it"
                )
        return new_users

    @model_validator(mode="after")
    def _last_stage_decides(self) -> RolloutSection:
        if not self.stages or [s.decides for s in self.stages] != [False] * (len(self.stages) - 1) + [True]:
            raise ValueError("stages must end in exactly one stage with decides: true")
        return self

    @model_validator(mode="after")
    def _is_of_use(self, info: ValidationInfo) -> RolloutSection:
        """Rules that could be followed, and would come to nothing good. A test goes on under those that it has."""
        if info.context != STORED:
            self._stages_differ()
            self._users_fit()
            self._hours_fit()
            self._time_to_react()
            self._holdback_settles()
        return self

    def _stages_differ(self) -> None:
        names = [s.name for s in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages have the names {', '.join(names)}: by a name one is known; give each its own")
        others = self.stages[:-2] + self.stages[-1:] if self.stages[-2:-1] == (self.burn_in,) else self.stages
        if any(s.name == BURN_IN for s in others):
            raise ValueError(f"a stage has the name {BURN_IN}, which is that of burn_in_hours; give it another name")
        weights = [s.weight for s in self.stages]
        if weights != sorted(weights):
            raise ValueError(f"stages must not lower the challenger's weight, got {weights}: a user would switch arms")

    def _users_fit(self) -> None:
        share = min(self.stages[-1].weight, 1 - self.stages[-1].weight)
        if self.min_users > share * self.max_users:
            raise ValueError(
                f"min_users is {self.min_users}, of each arm, and max_users {self.max_users}, of both, of whom the "
                f"smaller arm of stage {self.stages[-1].name!r} has {share:g}: it would end before it may promote; "
                f"raise max_users to {math.ceil(self.min_users / share)} or more, or lower min_users to "
                f"{math.floor(share * self.max_users)} or less"
            )

    def _hours_fit(self) -> None:
        if self.max_hours <= max(self.min_hours, self.burn_in_hours + self.settle_hours):
            raise ValueError(
                f"max_hours is {self.max_hours:g}, which must exceed min_hours ({self.min_hours:g}) and burn_in_hours "
                f"and settle_hours together ({self.burn_in_hours + self.settle_hours:g}): no trial would be settled in "
                "time"
            )

    def _time_to_react(self) -> None:
        blind = [name for name in self.guards if name in REACTIONS]
        if blind and self.settle_hours == 0:
            raise ValueError(
                f"guards names {', '.join(blind)}, and settle_hours is 0: what users do about answers is seen within "
                "that time, in which nobody could do anything, so the guard would find every challenger clean. Raise "
                "settle_hours, or leave these out of guards"
            )

    def _holdback_settles(self) -> None:
        for name, share in (("holdback", self.holdback), ("base_holdback", self.base_holdback)):
            if share > 0 and self.settle_hours >= WEEK_HOURS:
                raise ValueError(
                    f"settle_hours is {self.settle_hours:g}, which must be less than {WEEK_HOURS} (a week) where "
                    f"{name} is not 0, it is {share:g}: each week holds other users back, so no trial would ever be "
                    f"settled there. Lower settle_hours, or set {name} to 0"
                )

    @property
    def burn_in(self) -> RolloutStage | None:
        """The stage before the deciding one that `burn_in_hours` make."""
        if self.burn_in_hours == 0:
            return None
        return RolloutStage(name=BURN_IN, weight=self.stages[-1].weight, exposed=None, hours=self.burn_in_hours)
