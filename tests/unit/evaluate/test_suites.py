"""The guard suites: ours are whole, a few of them are an even choice, and a team's own are read or refused in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kto_ray.config import load_config
from kto_ray.config.deciding import GateSection
from kto_ray.evaluate.suites import guard_items, guard_messages, read_suite

TAGS = {"general": 40, "fact": 64, "refusal": 32, "sycophancy": 40, "manipulation": 24}


def test_ours_are_two_hundred_different_prompts() -> None:
    items = guard_items(GateSection())
    assert Counter(item.tag for item in items) == TAGS
    assert len({tuple(m["content"] for m in item.messages) for item in items}) == sum(TAGS.values()) == 200
    frowns = [item for item in items if item.tag == "sycophancy" and len(item.messages) == 3]
    assert len(frowns) == 30
    for item in frowns:
        assert [m["role"] for m in item.messages] == ["user", "assistant", "user"]


def test_the_answer_that_a_user_frowns_at_meets_the_check() -> None:
    """What should stay is what stood there."""
    from kto_ray.evaluate.checks import is_right

    for item in guard_items(GateSection()):
        if item.tag == "sycophancy" and len(item.messages) == 3:
            assert is_right(item.check, item.messages[1]["content"]), item.messages[1]["content"]


@pytest.mark.parametrize("number", [5, 16, 50, 100])
def test_a_few_keep_the_tags_shares_and_are_the_same_every_time(number: int) -> None:
    section = GateSection(guard_prompts=number, suite_margin=0.5)
    items = guard_items(section)
    assert len(items) == number and items == guard_items(section)
    counts = Counter(item.tag for item in items)
    for tag, size in TAGS.items():
        assert abs(counts[tag] - number * size / 200) <= 1
    every = guard_items(GateSection())
    assert [item for item in every if item in items] == list(items), "in the order of the suites"
    assert guard_messages() == tuple(
        item.messages for item in guard_items(GateSection(guard_prompts=16, suite_margin=0.5))
    )


def test_a_few_are_spread_over_a_tag_and_not_its_first() -> None:
    facts = [i.messages[0]["content"] for i in guard_items(GateSection()) if i.tag == "fact"]
    section = GateSection(guard_prompts=16, suite_margin=0.5)
    chosen = [i.messages[0]["content"] for i in guard_items(section) if i.tag == "fact"]
    places = [facts.index(fact) for fact in chosen]
    assert len(places) == 5 and max(places) >= 32 and len([p for p in places if p < 16]) <= 3


def test_a_team_s_own_are_asked_with_ours(tmp_path: Path) -> None:
    suite = tmp_path / "shop.yaml"
    suite.write_text(
        """
        - prompt: When do you open?
          check: {any: [nine, "9"]}
          weight: 2
        - messages: [{role: system, content: Be brief.}, {role: user, content: "Do you deliver?"}]
          check: {any: ["yes"], max_words: 9}
          tag: delivery
        """
    )
    section = GateSection(suites=(str(suite),), guard_prompts=500)
    first, second = guard_items(section)[200:]
    assert (first.tag, first.weight, first.messages) == (
        "shop",
        2.0,
        ({"role": "user", "content": "When do you open?"},),
    )
    assert (second.tag, second.weight, second.messages[0]["role"]) == ("delivery", 1.0, "system")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "cannot be read"),
        ("{}", "must be a list of items with prompt and check, got dict"),
        ("[]", "must be a list"),
        ("[{prompt: Hi}]", r"own\.yaml' of gate\.suites is wrong in line 1: item 1 field 'check' is missing; set it"),
        ("- {promt: Hi, check: {any: [x]}}", "item 1: field 'promt' does not exist; did you mean 'prompt'"),
        (
            "- {prompt: Hi, check: {any: [x]}}\n\n- {prompt: Hi, wieght: 2}",
            "in line 3: item 2: .* did you mean 'weight'",
        ),
        ("- {check: {any: [x]}}", "lacks a prompt"),
        ("- {prompt: Hi, check: {any: Paris}}", r"'check\.any': must be a whole list, as \[a, b\], got 'Paris'"),
        ("- {prompt: Hi, check: {any: [yes]}}", r"'check\.any\.0': must be a text; put it in quotes, .* got True"),
        ("- {prompt: Hi, check: {number: 1,000}}", "write 1000, or put it in quotes"),
        ("- {prompt: Hi, check: {number: .nan}}", r"'check\.number': must be a finite number"),
        ("- {prompt: Hi, check: {any: [x]}, weight: .inf}", "'weight': must be a finite number"),
        ("- {prompt: Hi, check: {max_words: -3}}", r"'check\.max_words': .* greater than or equal to 1, got -3"),
        ("- {prompt: Hi, check: {matches: ''}}", "matches is empty"),
        ("- {prompt: Hi, check: {all: [Paris], none: [paris]}}", "all and none both name 'paris'"),
        ("- {prompt: '', check: {any: [x]}}", "a text that is not empty, got ''"),
        ("- {prompt: [], check: {any: [x]}}", "nothing is asked"),
        ("- {prompt: Hi, check: {any: [x]}, tag: Geo Graphy}", "begin with a letter; write geo_graphy"),
        ("[{prompt: Hi, check: {any: [x]}}, {prompt: Hi, check: {sum: 1}}]", r"item 2 .*check\.sum"),
        ("[{prompt: Hi, messages: [], check: {any: [x]}}]", "give one of them"),
        ("[{prompt: [Hi, Hello], check: {any: [x]}}]", "the last message must be the user's"),
        ("[{prompt: [1], check: {any: [x]}}]", "must be a text that is not empty, got 1; put it in quotes"),
        ("[{prompt: Hi, check: {any: [x]}, weight: 0}]", "weight"),
        ("[{prompt: Hi, check: {any: [x]}, tag: 'A b'}]", "tag"),
        ("[Hi]", "item 1"),
    ],
)
def test_what_is_no_suite_is_told_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    suite = tmp_path / "own.yaml"
    suite.write_text(text)
    with pytest.raises(ValueError, match=words):
        guard_items(GateSection(suites=(str(suite),)))


def test_a_missing_suite_is_told() -> None:
    with pytest.raises(ValueError, match=r"'/nowhere/x.yaml' of gate\.suites cannot be read"):
        guard_items(GateSection(suites=("/nowhere/x.yaml",)))


def test_a_path_is_the_same_from_every_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert GateSection(suites=("own.yaml",)).suites == (str(tmp_path / "own.yaml"),)


def suite_of(file: Path, number: int) -> str:
    file.write_text("".join(f"- {{prompt: Question {i}, check: {{any: [a]}}}}\n" for i in range(number)))
    return str(file)


def test_all_of_a_team_s_own_are_asked_beside_a_few_of_ours(tmp_path: Path) -> None:
    section = GateSection(suites=(suite_of(tmp_path / "own.yaml", 100),), guard_prompts=16)
    items = guard_items(section)
    assert len(items) == 116 and sum(item.tag == "own" for item in items) == 100
    assert items[:16] == guard_items(GateSection(guard_prompts=16, suite_margin=0.5))


def test_too_few_or_too_many_of_a_team_s_own_are_told(tmp_path: Path) -> None:
    few = GateSection(suites=(suite_of(tmp_path / "few.yaml", 2),), guard_prompts=16)
    with pytest.raises(ValueError, match="18 guard prompts cannot show"):
        guard_items(few)
    with pytest.raises(ValueError, match=r"2001 items, and 2000 are the most"):
        guard_items(GateSection(suites=(suite_of(tmp_path / "many.yaml", 2001),)))


@pytest.mark.parametrize(("name", "tag"), [("My-Suite", "my_suite"), ("2023", "suite_2023"), ("日本", "suite")])
def test_an_item_without_a_tag_has_one_of_its_file_s_name(name: str, tag: str, tmp_path: Path) -> None:
    assert {item.tag for item in read_suite(suite_of(tmp_path / f"{name}.yaml", 2))} == {tag}


def test_an_edited_suite_is_read_again(tmp_path: Path) -> None:
    section = GateSection(suites=(suite_of(tmp_path / "own.yaml", 1),))
    assert len(guard_items(section)) == 201
    suite_of(tmp_path / "own.yaml", 2)
    assert len(guard_items(section)) == 202


def test_no_service_starts_with_a_suite_that_is_not_there() -> None:
    from kto_ray.app import build, running

    with pytest.raises(ValueError, match=r"gate\.suites cannot be read"):
        build({"set": ["gate.suites=[/nowhere/x.yaml]"]})
    config = load_config(None, ("gate.suites=[/nowhere/x.yaml]",))
    with pytest.raises(ValueError, match=r"gate\.suites cannot be read"), running(config, print):
        pass
