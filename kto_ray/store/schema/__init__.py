"""The data model, in one place.

    completions ──< feedback            what was said, and what users said of it (append-only)
    completions ──< labels              the verdict of each user on it, made from its feedback
    tallies                             how much there is of these; the rows add up
    snapshots ──< adapters ──< gates    what was learnt from it, and how it was judged
    rounds ──< trainings                one turn of the loop, and what was trained in it (or by hand)
    rollouts ──< rollout_points         a challenger's A/B test, and what each look at it saw
    rollouts ──< trials                 each user's part in a stage of it, settled once and for good
    exposures                           how many got an answer there, by arm, what was wrong with it, what they did
    budget_resets ──< rollouts          who began the error budget anew, and the tests of the life that this ended
    arrivals, voters                    answers that are not counted yet; who judged and is not settled yet
    aliases                             champion, challenger, previous -> adapter; the only thing that a swap changes
    replicas                            what each live policy replica holds
    requests                            what an operator asked the controller to do
    leases                              who may act: one controller at a time
    keys                                who may ask at all
    archives                            files that hold the texts of old completions
    sequence                            the order of completions and feedback
    compatibility                       the oldest schema whose programs may use this one

Times are seconds since the epoch (UTC), for people: what came first is told by `seq`. Rows are inserted and then
changed only in their state columns; completions and feedback texts never change.
"""

from kto_ray.store.schema.base import metadata
from kto_ray.store.schema.log import (
    EDIT,
    ORDER,
    PENDING,
    SERVED,
    TALLY_SLOTS,
    WAITING,
    archives,
    completions,
    feedback,
    keys,
    labels,
    sequence,
    tallies,
)
from kto_ray.store.schema.loop import (
    UNREAD,
    adapters,
    aliases,
    arrivals,
    budget_resets,
    compatibility,
    exposures,
    gates,
    leases,
    replicas,
    requests,
    rollout_points,
    rollouts,
    rounds,
    snapshots,
    trainings,
    trials,
    voters,
)

__all__ = [
    "EDIT",
    "ORDER",
    "PENDING",
    "SERVED",
    "TALLY_SLOTS",
    "UNREAD",
    "WAITING",
    "adapters",
    "aliases",
    "archives",
    "arrivals",
    "budget_resets",
    "compatibility",
    "completions",
    "exposures",
    "feedback",
    "gates",
    "keys",
    "labels",
    "leases",
    "metadata",
    "replicas",
    "requests",
    "rollout_points",
    "rollouts",
    "rounds",
    "sequence",
    "snapshots",
    "tallies",
    "trainings",
    "trials",
    "voters",
]
