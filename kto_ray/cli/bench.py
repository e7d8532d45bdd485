"""Benchmarks, one table of commands; each measures its peer in the same run and writes `--out`/NAME.json."""

from __future__ import annotations

from typing import Annotated

import typer

from kto_ray.cli.measuring import Run, Told, app, benchmark

__all__ = ["app"]

Data = Annotated[str, typer.Option(help="A file in TRL's unpaired preference format.")]
Jobs = Annotated[int, typer.Option(min=1, help="Experiments at a time, of train.threads threads each.")]
SHORT = ("data.max_length=112", "train.threads=1")  # short conversations: many steps in little time


@benchmark("train", "data.max_length=384")  # long enough for nearly all human rows
def train(
    run: Run,
    data: Data,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each process.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each variant; medians count.")] = 3,
) -> Told:
    """Tokens a second of our KTO step and of TRL's KTOTrainer, with its defaults and at its best."""
    from kto_ray.bench import train as bench

    return bench.bench_train(run.settings, data, steps, repeats, run.tell), bench.table


@benchmark("learn", *SHORT)
def learn(
    run: Run,
    data: Data,
    test: Annotated[int, typer.Option(min=10, help="Held-out conversations that the table is judged on.")] = 200,
    validation: Annotated[int, typer.Option(min=10, help="Conversations that hyperparameters are chosen by.")] = 70,
    conversations: Annotated[int, typer.Option(min=8, help="Conversations that a seed trains on.")] = 120,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    jobs: Jobs = 2,
) -> Told:
    """Held-out accuracy and AUC of KTO (ours, TRL's), APO-zero, SFT, DPO and SimPO. A run that was cut off goes on."""
    from kto_ray.bench import learn as bench

    sizes = bench.Sizes(test, validation, conversations, seeds)
    return bench.bench_learn(run.settings, data, sizes, False, jobs, run.out, run.tell), bench.table


@benchmark("ablation", *SHORT)
def ablation(run: Run, data: Data, jobs: Jobs = 2) -> Told:
    """KTO without its parts, with the conversations, seeds and settings of `learn`."""
    from kto_ray.bench import learn as bench

    return bench.bench_learn(run.settings, data, bench.Sizes(), True, jobs, run.out, run.tell), bench.table


@benchmark("edits")
def edits(
    run: Run,
    events: Annotated[int, typer.Option(min=8, help="Events of each kind.")] = 48,
    held_out: Annotated[int, typer.Option(min=8, help="Questions that are asked about afterwards.")] = 40,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
) -> Told:
    """How far an edit moves the policy, against a thumb. A run that was cut off goes on."""
    from kto_ray.bench import edits as bench

    return bench.bench_edits(run.settings, events, held_out, seeds, run.out, run.tell), bench.table


@benchmark("rounds")
def rounds(
    run: Run,
    taste: Annotated[str, typer.Option(help="What the users like: short, name or question.")] = "short",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    chats: Annotated[int, typer.Option(min=16, help="Users who ask and judge in a round.")] = 64,
    fresh: Annotated[int, typer.Option(min=16, help="Questions that every policy is measured on.")] = 64,
) -> Told:
    """Rounds in a row: each adapter from the base on all feedback, or from the one before on the newest."""
    from kto_ray.bench import rounds as bench

    return bench.bench_rounds(run.settings, taste, rounds, chats, fresh, run.out, run.tell), bench.table


@benchmark("data")
def data(
    run: Run,
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Stored examples; repeat for several sizes.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured training steps of a repeat, from each source.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Of the streaming measurement; medians count.")] = 9,
    store: Annotated[str | None, typer.Option(help="An empty PostgreSQL database to fill; SQLite otherwise.")] = None,
) -> Told:
    """Snapshots of 100,000, 300,000 and 1,000,000 made-up examples: time, memory, and what streaming one costs."""
    from kto_ray.bench import data as bench

    settings = run.settings.model_copy(update={"store_url": store}) if store else run.settings
    sizes = rows or [100_000, 300_000, 1_000_000]
    return bench.bench_data(settings, sizes, steps, repeats, run.tell), bench.table


@benchmark("engine")
def engine(
    run: Run,
    at_once: Annotated[list[int] | None, typer.Option(min=1, help="Requests at once; repeat for several.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each in a process.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each variant; medians count.")] = 2,
) -> Told:
    """Tokens a second of the policy's engine on a CPU: without adapters, with them, and as vLLM serves them."""
    from kto_ray.bench import engine as bench

    return bench.bench_engine(run.settings, at_once or [16, 32], rounds, repeats, run.tell), bench.table


@benchmark("serve", "model.max_model_len=512", "data.max_length=256")
def serve(
    run: Run,
    at_once: Annotated[list[int] | None, typer.Option(min=1, help="Streams at once; repeat for several.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="Of the model: serve.threads, and one less; repeat for several.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=5, help="Of each measurement, after a warm-up.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each server; medians of the ratios count.")] = 2,
) -> Told:
    """The full path (keys, durable answers, an A/B test) beside bare `vllm serve`: speed and latency of streams."""
    from kto_ray.bench import serve as bench

    most = run.settings.serve.threads
    of_model = threads or sorted({most, max(1, most - 1)}, reverse=True)
    return bench.bench_serve(run.settings, at_once or [1, 8, 32], of_model, seconds, repeats, run.tell), bench.table


# A thread a replica, and adapters of 10 MB.
@benchmark("swap", "model.max_model_len=512", "data.max_length=256", "serve.threads=1", "kto.rank=8", "kto.alpha=16")
def swap(
    run: Run,
    cycles: Annotated[int, typer.Option(min=1, help="Swaps, at least.")] = 100,
    seconds: Annotated[float, typer.Option(min=10, help="Of each turn with swaps; one without is half as long.")] = 60,
    replicas: Annotated[int, typer.Option(min=1)] = 2,
) -> Told:
    """Versions come and go under streaming load: what fails, is cut off or answered by two, and what swaps cost."""
    from kto_ray.bench import swap as bench

    section = run.settings.serve.model_copy(update={"replicas": replicas})
    settings = run.settings.model_copy(update={"serve": section})
    return bench.bench_swap(settings, cycles, seconds, run.tell), bench.table


@benchmark("peeking")
def peeking(
    run: Run,
    runs: Annotated[int, typer.Option(min=10, help="Simulated A/B tests of each pair of rates.")] = 1000,
    users: Annotated[int, typer.Option(min=40, help="Looks of a test, one after each user.")] = 400,
    patience: Annotated[int, typer.Option(min=40, help="Users after which no gain is looked for any more.")] = 2000,
) -> Told:
    """The A/B test's error rate where it is looked at after every user, and how many users it needs."""
    from kto_ray.bench import peeking as bench

    return bench.bench_peeking(run.settings, runs, users, patience, run.tell), bench.table


@benchmark("decisions")
def decisions(
    run: Run,
    tests: Annotated[int, typer.Option(min=20, help="Simulated tests, or lifetimes, for each rate.")] = 2000,
) -> Told:
    """How often the decisions about a challenger are wrong, who can fool them, and how soon they come. Simulated."""
    from kto_ray.bench import decisions as bench

    return bench.bench_decisions(tests, run.tell), bench.table


@benchmark("gate")
def gate(
    run: Run,
    lifetimes: Annotated[int, typer.Option(min=10, help="Simulated holdouts of each candidate.")] = 8000,
    resamples: Annotated[int, typer.Option(min=200, help="Of each bootstrap; the gate itself takes more.")] = 500,
) -> Told:
    """How often the gate passes a clone of the champion, a worse one, a drift along length, and a better one."""
    from kto_ray.bench import gate as bench

    return bench.bench_gate(run.settings, lifetimes, resamples, run.tell), bench.table


@benchmark("chat", "model.max_model_len=512", "data.max_length=256")
def chat(
    run: Run,
    users: Annotated[int, typer.Option(min=1, help="Who chat and judge at once.")] = 24,
    seconds: Annotated[float, typer.Option(min=5, help="Of measurement, after a warm-up.")] = 60,
) -> Told:
    """The whole service under users who chat: answers a second, and the share of the cores that the model gets."""
    from kto_ray.bench import chat as bench

    return bench.bench_chat(run.settings, users, seconds, run.tell), bench.table


# Prompts enough for a p99 of users in three windows, and no hour of them.
@benchmark("live", "model.max_model_len=512", "data.max_length=256", "gate.guard_prompts=64")
def live(
    run: Run,
    per_s: Annotated[float, typer.Option(min=0.05, help="Requests of users a second.")] = 1.0,
    repeats: Annotated[int, typer.Option(min=1, help="Of both windows, with the gate and without.")] = 3,
) -> Told:
    """What users' first tokens wait for while the gate asks its guard prompts, against the same time without."""
    from kto_ray.bench import live as bench

    return bench.bench_live(run.settings, per_s, repeats, run.tell), bench.table


# A service of minutes on short texts, which learns a taste in one round, and a gate that looks only whether it is sane.
BRIEF = (
    *("model.max_model_len=512", "data.max_length=256", "data.holdout_share=0.3", "rollout.new_users=true"),
    *("kto.learning_rate=1e-3", "kto.loss_aversion=0.5", "kto.rank=8", "kto.alpha=16"),
    *("gate.guard_prompts=16", "gate.suite_margin=0.9", "gate.min_auc=0", "gate.min_auc_gain=-1"),
)


@benchmark("loop", *BRIEF)
def loop(
    run: Run,
    labels: Annotated[int, typer.Option(min=64, help="That start the round.")] = 256,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, each in a service of its own; medians count.")] = 3,
) -> Told:
    """From the thumb that starts a round to the first token of its gated candidate, and what that adds to training."""
    from kto_ray.bench import loop as bench

    return bench.bench_loop(run.settings, labels, repeats, run.tell), bench.table


@benchmark("scale")
def scale(
    run: Run,
    events: Annotated[list[int] | None, typer.Option(min=1000, help="Stored events; repeat for several.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of each measurement; medians count.")] = 20,
) -> Told:
    """A tick of the loop and the pages that are looked at often, while log, pending feedback and rounds grow."""
    from kto_ray.bench import scale as bench

    sizes = events or [10_000, 100_000, 1_000_000]
    return bench.bench_scale(run.settings, sizes, repeats, run.tell), bench.table


@benchmark("ingest")
def ingest(
    run: Run,
    answers: Annotated[int, typer.Option(min=1000, help="Of a run at the store, each with a thumb.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=2, help="Of each load over HTTP.")] = 15,
    repeats: Annotated[int, typer.Option(min=1, help="Medians count.")] = 5,
    postgres: Annotated[
        str | None, typer.Option(help="An empty PostgreSQL database; one of its own where a server is installed.")
    ] = None,
) -> Told:
    """Answers and feedback a second, through the one writer and by plain autocommit; what a durable answer costs."""
    from kto_ray.bench import ingest as bench

    sizes = bench.Sizes(answers, seconds, repeats)
    return bench.bench_ingest(run.settings, postgres, sizes, run.tell), bench.table
