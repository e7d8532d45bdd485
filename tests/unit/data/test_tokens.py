"""How an answer becomes tokens: those of the engine as they are, and texts as the engine would have had them."""

from __future__ import annotations

from typing import Any

import pytest

from kto_ray.config.serving import ModelSection
from kto_ray.data.tokens import Row, as_served, encode, encode_many, load_tokenizer, turn_of
from kto_ray.model import resolve_model

HI = ({"role": "user", "content": "Hi"},)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    """Of the embedded model; a copy, for templates are put into it."""
    import copy

    return copy.deepcopy(load_tokenizer(resolve_model(ModelSection()), None))


def test_ids_of_the_engine_are_taken_as_they_are(tokenizer: Any) -> None:
    rows = [Row(({"role": "user", "content": [{"type": "image_url"}]},), "said", prompt_ids=[5, 6], answer_ids=[7, 2])]
    assert encode_many(tokenizer, rows) == [([5, 6], [7, 2])]
    edited = encode_many(tokenizer, [Row((), "Better.", prompt_ids=[5, 6])])[0]
    assert edited is not None and edited[0] == [5, 6], "an edit answers the prompt that was served"
    assert tokenizer.decode(edited[1]) == "Better.<|im_end|>"


def test_marks_of_a_turn_in_an_edit_are_text(tokenizer: Any) -> None:
    text = "Sure.<|im_end|>\n<|im_start|>user\nMore"
    ids = encode(tokenizer, HI, text)
    assert ids is not None and tokenizer.decode(ids[1]) == text + "<|im_end|>"
    marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in ids[1] if i in marks] == [marks[1]], "one end, ours"


def test_an_answer_that_did_not_end_has_no_end(tokenizer: Any) -> None:
    ids = encode(tokenizer, HI, "So", ended=False)
    assert ids is not None and tokenizer.decode(ids[1]) == "So"


def test_the_end_of_a_turn_is_that_of_the_template(tokenizer: Any) -> None:
    assert tokenizer.decode(turn_of(tokenizer).end) == "<|im_end|>"
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}[assistant]"
    )
    other = turn_of.__wrapped__(tokenizer)
    assert (other.before, tokenizer.decode(other.end)) == (" ", "<|endoftext|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert turn_of.__wrapped__(tokenizer).end == (tokenizer.eos_token_id,)
    assert turn_of.__wrapped__(tokenizer).before == "assistant: "


def test_a_template_prints_the_day_of_the_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} " + CHATML
    old, new = encode_many(tokenizer, [Row(HI, "Hello.", at=0.0), Row(HI, "Hello.", at=1.7e9)])
    assert old is not None and tokenizer.decode(old[0]).startswith("1970-01-01")
    assert new is not None and tokenizer.decode(new[0]).startswith("2023-11-14")


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content + 1 }}", "{{ raise_exception('no') }}", "{{ messages[7].content.x }}"]
)
def test_a_template_that_fails_costs_a_row_and_no_more(tokenizer: Any, template: str) -> None:
    turn_of(tokenizer)
    tokenizer.chat_template = template
    rows = [Row(HI, "Hello."), Row(HI, "Hello.", prompt_ids=[1])]
    lost, kept = encode_many(tokenizer, rows)
    assert lost is None and kept is not None


def test_a_prompt_that_holds_tools_is_not_made_of_its_messages(tokenizer: Any) -> None:
    rows = [Row(HI, "Hello.", shaped=True), Row(HI, "Hello.", shaped=True, prompt_ids=[1])]
    lost, kept = encode_many(tokenizer, rows)
    assert lost is None and kept is not None and kept[0] == [1]


def test_messages_are_rendered_as_the_engine_does() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
    odd = {"id": "c2", "type": "function", "function": {"name": "tide", "arguments": "[1]"}}
    assert as_served(
        [
            {"role": "user", "content": ["One.", {"type": "text", "text": "Two."}]},
            {"role": "assistant", "content": None, "tool_calls": [call, odd], "refusal": None},
            {"role": "assistant", "content": "x", "tool_calls": None},
        ],
        CHATML,
    ) == [
        {"role": "user", "content": "One.\nTwo."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {**call, "function": {"name": "tide", "arguments": {"port": "Hull"}}},
                {**odd, "function": {"name": "tide", "arguments": {}}},
            ],
        },
        {"role": "assistant", "content": "x"},
    ]


def test_developers_are_the_system_where_the_template_knows_none() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "developer", "content": "Be brief."}]
    assert as_served(talk, CHATML) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert as_served(talk, CHATML + "{# developer #}") == talk


@pytest.mark.parametrize(
    "content", [[{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text", "text": None}], 7, {"a": 1}, [[]]]
)
def test_what_has_no_text_is_not_rendered(content: Any) -> None:
    assert as_served([{"role": "user", "content": content}], CHATML) is None


def test_reasoning_can_be_context(tokenizer: Any) -> None:
    thought = tokenizer("<think>two and two</think>\n\n")["input_ids"]
    said = [*tokenizer("Four.")["input_ids"], tokenizer.eos_token_id]
    row = Row(HI, "Four.", prompt_ids=[1, 2], answer_ids=[*thought, *said], reasoned=True)
    assert encode_many(tokenizer, [row]) == [([1, 2, *thought], said)]
