"""A wrong config names the field, the value, what is allowed and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from kto_ray.config import Config, ConfigError, load_config
from kto_ray.config.deciding import REACTIONS, GateSection, RolloutSection
from kto_ray.records import trials
from kto_ray.stats.exact import much_worse

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def test_defaults_are_valid_and_embedded() -> None:
    config = load_config()
    assert config.embedded and config.http.host == "127.0.0.1"
    assert config.database_url.startswith("sqlite:////")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What production takes from secrets comes through the environment, as in a pod.
    monkeypatch.setenv("KTO_RAY__STORE_URL", "postgresql+psycopg://kto@db/kto")
    monkeypatch.setenv("KTO_RAY__SALT", "secret")
    assert isinstance(load_config(path), Config)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("kto.betta=0.1", ["'kto.betta'", "did you mean 'beta'"]),
        ("kto.beta=-1", ["'kto.beta'", "greater than 0", "-1"]),
        ("kto.micro_batch=2", ["'kto.micro_batch'", "4", "2"]),
        ("kto.target_modules=[lm_head]", ["lm_head", "remove it"]),
        ("kto.rank=64", ["kto.rank is 64", "serve.max_lora_rank is 16", "raise"]),
        ("http.behind_proxy=true", ["'http.behind_proxy'", "proxy_secret"]),
        ("http.proxy_secret=short", ["'http.proxy_secret'", "16"]),
        ("adapters.signing_keys=[sh0rt]", ["'adapters.signing_keys'", "5 characters", "openssl rand -hex 32"]),
        ("http.proxy_name=a/b", ["'http.proxy_name'", "a/b"]),
        ("http.cors_origins=['*']", ["http.cors_origins", "*"]),
        ("limits.chats_per_minute=0", ["'limits.chats_per_minute'", "0"]),
        ("embedded=false", ["store_url", "postgresql"]),
        ("serve.max_loras=2", ["'serve.max_loras'", "2"]),
        ("data.max_length=100000", ["data.max_length", "max_model_len"]),
        ("modell.id=x", ["'modell'", "did you mean 'model'"]),
        ("nonsense", ["a.b=c", "'nonsense'"]),
        ("gate.judge={kind: llm, model: m}", ["'gate.judge'", "needs url", "http://judge:8000/v1"]),
        ("gate.judge={kind: reward, url: 'judge:1', model: m}", ["'gate.judge.url'", "judge:1"]),
        ("gate.judge={kind: rule}", ["needs pattern"]),
        ("gate.judge={kind: rule, pattern: '('}", ["'('", "no regular expression"]),
        ("gate.judge={kind: oracle}", ["'gate.judge.kind'", "oracle"]),
        ("serve.max_lora_rank=12", ["'serve.max_lora_rank'", "8, 16, 32", "12"]),
        ("kto.dropout=1", ["'kto.dropout'", "less than 1"]),
        ("kto.dora=true", ["vLLM cannot serve", "kto.dora: false", "loop.enabled: false"]),
        ("train.sharding=fsdp", ["sharding is 'fsdp'", "workers is 1", "train.workers"]),
        ("loop.candidates.apo.learning_rate=-1", ["'loop.candidates.apo.learning_rate'", "greater than 0", "-1"]),
        ("loop.candidates.apo.learning_rat=1", ["'loop.candidates.apo.learning_rat'", "did you mean 'learning_rate'"]),
        ("loop.candidates.apo.loss_type=dpo", ["'loop.candidates.apo.loss_type'", "'apo_zero_unpaired'", "'dpo'"]),
        ("loop.candidates.apo.micro_batch=16", ["'loop.candidates.apo'", "micro_batch is 16", "set kto.micro_batch"]),
        ("loop.candidates.apo.loss_aversion=2", ["'loop.candidates.apo'", "loss_aversion is 2", "sealed into the"]),
        ("loop.candidates.apo.rank=64", ["loop.candidates.apo.rank is 64", "serve.max_lora_rank is 16", "raise"]),
        ("loop.candidates.apo.dora=true", ["loop.candidates.apo.dora", "vLLM cannot serve"]),
        ("loop.candidates.A/B={}", ["'loop.candidates'", "a-z, 0-9 and -", "'A/B'"]),
        ("rollout.max_hours=.inf", ["'rollout.max_hours'", "must be a finite number", "inf", "give a large one"]),
        ("rollout.max_paused_hours=.inf", ["'rollout.max_paused_hours'", "finite"]),
        ("rollout.slow_s=.inf", ["'rollout.slow_s'", "finite"]),
        ("loop.approval_hours=1e9", ["'loop.approval_hours'", "less than or equal to 100000"]),
        ("loop.candidates.apo.beta=.inf", ["'loop.candidates.apo.beta'", "finite"]),
        ("serve.engine={a: {b: [.nan]}}", ["'serve.engine'", "a is {'b': [nan]}", "JSON does not know"]),
        ("JUDGEparams: {temperature: .inf}}", ["'gate.judge.params'", "temperature is inf"]),
        ("JUDGEparams: {since: 2024-01-05}}", ["'gate.judge.params'", "since is datetime.date", "JSON"]),
        ("JUDGEparams: {model: b}}", ["'gate.judge.params'", "holds model", "take model out and set gate.judge.model"]),
        ("JUDGEparams: {stream: true}}", ["'gate.judge.params'", "take stream out"]),
        ("JUDGEmin_win_rate: 1}", ["judge.min_win_rate is 1", "wins all of 100 prompts", "0.979", "lower it"]),
        ("JUDGEpattern: a}", ["pattern is set", "kind is 'llm'", "take pattern out"]),
        ("JUDGEtimout_s: 3}", ["'gate.judge.timout_s'", "did you mean 'timeout_s'"]),
        ("JUDGEzzz: 3}", ["'gate.judge.zzz'", "known fields: at_once, key, kind"]),
        ("gate.judge={kind: rule, pattern: a, url: 'http://judge'}", ["url is set", "kind is 'rule'", "take url out"]),
        ("gate.guard_prompts=16", ["16 guard prompts", "suite_margin 0.1", "29 or more", "0.18 or more"]),
        ("gate.min_holdout=5000", ["min_holdout is 5000", "max_holdout 1000", "lower min_holdout or raise"]),
        ("gate.min_holdout_users=5000", ["min_holdout_users is 5000", "max_holdout 1000"]),
        ("gate.min_length_ratio=5", ["min_length_ratio is 5", "max_length_ratio 3", "lower"]),
        ("gate.suites=my.yaml", ["'gate.suites'", "must be a whole list, as [a, b]", "'my.yaml'"]),
        ("rollout.guards=failed", ["'rollout.guards'", "must be a whole list"]),
        ("rollout.stages={canary: 0.1}", ["'rollout.stages'", "must be a whole list"]),
        ("rollout.ask=harm", ["'rollout.ask'", "must be a whole list"]),
        ("adapters.signing_keys=", ["'adapters.signing_keys'", "must be a whole list"]),
        ("rollout=", ["'rollout'", "must be a section"]),
        ("rollout.min_users=10001", ["min_users is 10001", "max_users 20000", "20002 or more", "10000 or less"]),
        ("rollout.stages=[{name: a, weight: 0.1}, {name: a, weight: 0.5, decides: true}]", ["names a, a", "its own"]),
        ("rollout.stages=[{weight: 0.5, decides: true}]", ["'rollout.stages.0.name' is missing; set it"]),
        ("train.sharding=deepspeed", ["'train.sharding'", "'fsdp'", "deepspeed"]),
    ],
)
def test_wrong_values_are_explained(override: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, (override.replace("JUDGE", "gate.judge={kind: llm, url: 'http://judge/v1', model: m, "),))
    assert "default factory" not in str(error.value), "one fault is told once"
    for words in told:
        assert words in str(error.value)


def test_a_secret_of_a_section_that_is_not_there_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTO_RAY__GATE__JUDGE__KEY", "k3y")
    with pytest.raises(ConfigError) as error:
        load_config()
    words = str(error.value)
    assert "'gate.judge.kind' is missing; set it to 'llm' or 'reward' or 'rule', or take out 'gate.judge'" in words
    assert "which has key (KTO_RAY__GATE__JUDGE__KEY in the environment)" in words and "k3y" not in words


@pytest.mark.parametrize("margin", [0.05, 0.1, 0.2, 0.5, 0.9])
def test_only_so_few_guard_prompts_are_refused_that_the_exact_test_cannot_pass(margin: float) -> None:
    least = next(n for n in range(1, 200) if (1 - margin) ** n <= 0.05)
    GateSection(guard_prompts=max(least, 2), suite_margin=margin)
    if least > 2:
        assert much_worse(0, 0, least - 1, margin) > 0.05
        with pytest.raises(ValueError, match=f"set guard_prompts to {least} or more"):
            GateSection(guard_prompts=least - 1, suite_margin=margin)


def test_a_candidate_is_what_it_sets_over_the_kto_section_and_stays_so() -> None:
    config = load_config(None, ("kto.beta=0.2", "loop.candidates.kto={}", "loop.candidates.fast.learning_rate=1e-3"))
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config and list(again.loop.candidates) == ["kto", "fast"]
    plain, fast = (config.with_kto(over.model_dump()).kto for over in again.loop.candidates.values())
    assert plain == config.kto
    assert fast == config.kto.model_copy(update={"learning_rate": 1e-3}) and fast.beta == 0.2


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("train.device=gpu", "train.quantize=nf4", "train.sharding=fsdp", "train.workers=2"), "4-bit weights are not"),
        (("train.sharding=fsdp", "train.workers=2", "train.step=trl"), "only the exact step"),
        (("train.device=gpu", "train.workers=2", "train.gpus_per_worker=0.5"), "NCCL refuses two workers on one GPU"),
        (("loop.enabled=false", "kto.dora=true", "train.sharding=fsdp", "train.workers=2"), "whole base weights"),
        (("loop.enabled=false", "loop.candidates.a.dora=true"), "loop.candidates.a has dora true"),
        (("loop.enabled=false", "kto.dora=true", "loop.candidates.a={}"), "set loop.candidates.a.dora: false"),
    ],
)
def test_options_that_cannot_work_together_are_refused(overrides: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("kto.rslora=true",),
        ("kto.dora=true", "loop.enabled=false"),
        ("train.quantize=nf4",),
        ("train.device=gpu", "train.quantize=nf4"),
        ("train.device=gpu", "train.quantize=nf4", "train.workers=2"),
        ("train.sharding=fsdp", "train.workers=2", "train.gradient_checkpointing=true", "train.dtype=bfloat16"),
        ("train.mlflow_uri=sqlite:///mlflow.db",),
    ],
)
def test_options_that_work_load(overrides: tuple[str, ...]) -> None:
    load_config(None, overrides)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(tmp_path / "broken.yaml")


def test_environment_then_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTO_RAY__KTO__BETA", "0.3")
    monkeypatch.setenv("KTO_RAY__LOOP__MIN_LABELS", "77")
    config = load_config(None, ("kto.beta=0.5",))
    assert (config.kto.beta, config.loop.min_labels) == (0.5, 77)


WHERE = ("store_url=postgresql+psycopg://u:p@db/kto", "home=s3://bucket/kto", "http.spool=/var/lib/kto")


def test_beyond_one_machine_the_salt_is_a_secret() -> None:
    beyond = ("embedded=false", *WHERE)
    with pytest.raises(ConfigError, match=r"salt is 'kto-ray'.*KTO_RAY__SALT"):
        load_config(None, beyond)
    assert load_config(None, (*beyond, "salt=c2VjcmV0")).salt == "c2VjcmV0"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (("model.id=org/model",), "model.revision None"),
        (("model.id=org/model", "model.revision=main"), "model.revision 'main'"),
        (("model.id=org/model", f"model.revision={'a1' * 20}"), None),
        (("model.id=/models/base",), None),
        ((), None),
    ],
)
def test_beyond_one_machine_a_model_of_the_hub_is_one_commit(model: tuple[str, ...], told: str | None) -> None:
    beyond = ("embedded=false", "salt=c2VjcmV0", *WHERE, *model)
    if told is None:
        assert not load_config(None, beyond).embedded
        return
    with pytest.raises(ConfigError, match=f"{told}.*different weights"):
        load_config(None, beyond)


def test_a_config_is_shown_without_its_secrets() -> None:
    secrets = ("salt=c2VjcmV0", "http.proxy_secret=0123456789abcdef", "store_url=sqlite:////tmp/p4ss.db")
    judge = "gate.judge={kind: llm, url: 'http://judge/v1', model: m, key: 4711}"
    config = load_config(None, (*secrets, f"adapters.signing_keys={'5e' * 16}", judge))
    assert config.gate.judge is not None and config.gate.judge.key is not None
    assert config.gate.judge.key.get_secret_value() == "4711" and "4711" not in config.gate.model_dump_json()
    shown = repr(config)
    told = ("c2VjcmV0", "0123456789abcdef", "p4ss", "5e5e", "4711")
    assert "'127.0.0.1'" in shown and not any(held in shown for held in told)
    with pytest.raises(ConfigError) as error:
        load_config(None, ("adapters.signing_keys=[sh0rt]",))
    assert "sh0rt" not in str(error.value)
    with pytest.raises(ConfigError, match=r"'gate\.judge\.key': a key is of ASCII letters") as error:
        load_config(None, ("gate.judge={kind: llm, url: 'http://judge/v1', model: m, key: 'k3y with space'}",))
    assert "k3y" not in str(error.value)
    for wrong in ("key: k3y", "api_key: k3y", "kind: llm, model: m, url: 'http://u:k3y@judge/v1'", "key: [k3y]"):
        with pytest.raises(ConfigError) as error:
            load_config(None, (f"gate.judge={{{wrong}}}",))
        assert "k3y" not in str(error.value)


def test_signing_keys_come_from_the_environment_as_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTO_RAY__ADAPTERS__SIGNING_KEYS", f"{'n' * 32}, {'o' * 32}")
    assert load_config().adapters.signing_keys == ("n" * 32, "o" * 32)


def test_a_store_is_told_by_a_mark_that_needs_the_salt() -> None:
    one, other = (load_config(None, ("home=/tmp/x", f"salt={salt}")).store_mark for salt in ("a", "b"))
    assert one != other and len(one) == 16


def test_a_user_never_switches_arms_between_stages() -> None:
    stages = "[{name: a, weight: 0.5}, {name: b, weight: 0.2, decides: true}]"
    with pytest.raises(ConfigError, match="switch arms"):
        load_config(None, (f"rollout.stages={stages}",))


def test_a_holdbacks_week_is_long_enough_to_settle_a_trial() -> None:
    for name, other in (("holdback", "base_holdback"), ("base_holdback", "holdback")):
        with pytest.raises(ConfigError, match=f"settle_hours is 168, which must be less than 168 .*set {name} to 0"):
            load_config(None, ("rollout.settle_hours=168", f"rollout.{other}=0"))
    assert load_config(None, ("rollout.settle_hours=167",)).rollout.holdback > 0
    off = ("rollout.holdback=0", "rollout.base_holdback=0")
    assert load_config(None, ("rollout.settle_hours=168", *off)).rollout.settle_hours == 168


def test_a_guard_by_what_users_do_needs_the_time_in_which_they_do_it() -> None:
    assert REACTIONS == trials.REACTIONS and RolloutSection().guards == trials.GUARDS
    assert load_config(None, ("rollout.settle_hours=0",)).rollout.guards == trials.FAULTS
    for guard in REACTIONS:
        with pytest.raises(ConfigError, match=f"guards names {guard}, and settle_hours is 0: .*Raise settle_hours, or"):
            load_config(None, ("rollout.settle_hours=0", f"rollout.guards=[failed, {guard}]"))
    assert load_config(None, ("rollout.settle_hours=0", "rollout.guards=[slow]")).rollout.guards == ("slow",)


def test_staff_are_named_as_the_store_does_and_get_what_there_is() -> None:
    given = "rollout.staff={alice: challenger, app/bob: policy@v7-3fa9c1, ops/*: base}"
    staff = load_config(None, (given,)).rollout.staff
    assert staff == {"alice": "challenger", "app/bob": "policy@v7-3fa9c1", "ops/*": "base"}
    for who in ("'*'", "a*", "a/b*", "a/*/c", "''"):
        with pytest.raises(ConfigError, match=r"names nobody; name a user as the store does .* as 'app/\*'"):
            load_config(None, (f"rollout.staff={{{who}: base}}",))
    for who in ("app/", "/alice"):
        with pytest.raises(ConfigError, match="names nobody"):
            load_config(None, (f"rollout.staff={{{who}: base}}",))
    with pytest.raises(ConfigError, match="for an alias; here it stands alone: challenger"):
        load_config(None, ("rollout.staff={alice: policy@challenger}",))
    with pytest.raises(ConfigError, match=r"served_name is 'policy': .* as policy@v7-3fa9c1"):
        load_config(None, ("rollout.staff={alice: model@v7-3fa9c1}",))
    for wanted in ("challengr", "v7", "'@v7'", "policy@", "policy@v7"):
        with pytest.raises(ConfigError, match=r"is no alias .champion, challenger, previous, base. and no version"):
            load_config(None, (f"rollout.staff={{alice: {wanted}}}",))


def test_what_is_no_yaml_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xa1\xa2")
    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match=str(path)):
            load_config(path)
    with pytest.raises(ConfigError, match=r"--set model.id has the value '\['"):
        load_config(None, ("model.id=[",))


def test_a_win_rate_that_every_candidate_has_is_no_bar() -> None:
    with pytest.raises(ConfigError, match="min_win_rate"):
        load_config(None, ("gate.judge.min_win_rate=0",))
