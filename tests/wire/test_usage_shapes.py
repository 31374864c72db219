"""Usage in every shape that servers are known to write it, what it means in tokens, and what it costs.

Expected figures are made by hand from each provider's own words on what it bills.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.cost.price import Price
from weighbridge.cost.usage import Charge, Usage, charge
from weighbridge.wire.usage import MOST_TOKENS, read_usage

#: US dollars per million: input 1.25, output 2.5, cached 0.2, written to a cache 1.5625. In nano-dollars a token:
#: 1250, 2500, 200 and 1562.5.
PRICE = Price(1.25, 2.5, 0.2, cache_write_usd_per_million=1.5625)

#: Server and what is special about it; what it writes; tokens of prompt, output, cached, written and, where that is
#: told, thinking; nano-dollars.
SHAPES: list[tuple[str, dict[str, Any], tuple[int, ...], int]] = [
    (
        "OpenAI: thinking is inside the completion, cached is inside the prompt",
        {
            "prompt_tokens": 1000,
            "completion_tokens": 500,
            "total_tokens": 1500,
            "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 400, "accepted_prediction_tokens": 0},
        },
        (1000, 500, 600, 0, 400),
        400 * 1250 + 600 * 200 + 500 * 2500,
    ),
    (
        "xAI: thinking comes on top, as the sum says",
        {
            "prompt_tokens": 10120,
            "completion_tokens": 1499,
            "total_tokens": 14428,
            "prompt_tokens_details": {"cached_tokens": 128, "text_tokens": 10120},
            "completion_tokens_details": {"reasoning_tokens": 2809},
        },
        (10120, 4308, 128, 0, 2809),
        23_285_600,
    ),
    (
        "Gemini's OpenAI endpoint: thinking is in the sum alone",
        {"prompt_tokens": 10, "completion_tokens": 21, "total_tokens": 1200},
        (10, 1190, 0, 0),
        10 * 1250 + 1190 * 2500,
    ),
    (
        "Perplexity: more thinking than completion, and no sum that has it",
        {"prompt_tokens": 33, "completion_tokens": 100, "reasoning_tokens": 7000, "citation_tokens": 900},
        (33, 7100, 0, 0, 7000),
        33 * 1250 + 7100 * 2500,
    ),
    (
        "Perplexity's research: more thinking than completion, and a sum without it",
        {
            "prompt_tokens": 33,
            "completion_tokens": 7163,
            "total_tokens": 7196,
            "reasoning_tokens": 73997,
            "num_search_queries": 18,
        },
        (33, 81160, 0, 0, 73997),
        33 * 1250 + 81160 * 2500,
    ),
    (
        "watsonx: counts in the singular",
        {"input_token_count": 10, "generated_token_count": 20},
        (10, 20, 0, 0),
        10 * 1250 + 20 * 2500,
    ),
    (
        "DeepSeek: what was cached is told beside the counts",
        {
            "prompt_tokens": 700,
            "completion_tokens": 80,
            "total_tokens": 780,
            "prompt_cache_hit_tokens": 640,
            "prompt_cache_miss_tokens": 60,
            "completion_tokens_details": {"reasoning_tokens": 50},
        },
        (700, 80, 640, 0, 50),
        60 * 1250 + 640 * 200 + 80 * 2500,
    ),
    (
        "a relay of DeepSeek's that tells the two parts of the prompt and not the whole",
        {"completion_tokens": 80, "prompt_cache_hit_tokens": 640, "prompt_cache_miss_tokens": 60},
        (700, 80, 640, 0),
        60 * 1250 + 640 * 200 + 80 * 2500,
    ),
    (
        "Moonshot and Together: cached tokens are one of the counts",
        {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320, "cached_tokens": 256},
        (300, 20, 256, 0),
        44 * 1250 + 256 * 200 + 20 * 2500,
    ),
    (
        "Anthropic: what a cache had and got is counted apart from the input",
        {
            "input_tokens": 50,
            "cache_read_input_tokens": 2000,
            "cache_creation_input_tokens": 400,
            "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 70,
        },
        (2450, 70, 2000, 400),
        50 * 1250 + 2000 * 200 + 400 * 1_5625 // 10 + 70 * 2500,
    ),
    (
        "a proxy before Anthropic: the same names, within the prompt",
        {
            "prompt_tokens": 2450,
            "completion_tokens": 70,
            "total_tokens": 2520,
            "cache_read_input_tokens": 2000,
            "cache_creation_input_tokens": 400,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_creation_tokens": 400},
        },
        (2450, 70, 2000, 400),
        50 * 1250 + 2000 * 200 + 400 * 1_5625 // 10 + 70 * 2500,
    ),
    (
        "another: the same names, not within the prompt, but in the sum",
        {
            "prompt_tokens": 2400,
            "completion_tokens": 70,
            "total_tokens": 4870,
            "cache_read_input_tokens": 2000,
            "cache_creation_input_tokens": 400,
        },
        (4800, 70, 2000, 400),
        2400 * 1250 + 2000 * 200 + 400 * 1_5625 // 10 + 70 * 2500,
    ),
    (
        "OpenRouter: written tokens are among the details",
        {
            "prompt_tokens": 900,
            "completion_tokens": 10,
            "total_tokens": 910,
            "cost": 0.0014,
            "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 800},
        },
        (900, 10, 0, 800),
        100 * 1250 + 800 * 1_5625 // 10 + 10 * 2500,
    ),
    (
        "OpenAI's Responses: other names, thinking inside",
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens": 40,
            "output_tokens_details": {"reasoning_tokens": 30},
            "total_tokens": 140,
        },
        (100, 40, 64, 0, 30),
        36 * 1250 + 64 * 200 + 40 * 2500,
    ),
    (
        "all numbers in quotes, some with a point",
        {
            "prompt_tokens": "1000",
            "completion_tokens": " 500.0 ",
            "total_tokens": "1500",
            "prompt_tokens_details": {"cached_tokens": "600"},
            "completion_tokens_details": {"reasoning_tokens": "400"},
        },
        (1000, 500, 600, 0, 400),
        400 * 1250 + 600 * 200 + 500 * 2500,
    ),
    (
        "Gemini's own names: thinking on top of the candidates, cached inside the prompt",
        {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 60,
            "candidatesTokenCount": 30,
            "thoughtsTokenCount": 20,
            "totalTokenCount": 150,
        },
        (100, 50, 60, 0, 20),
        40 * 1250 + 60 * 200 + 50 * 2500,
    ),
    (
        "Bedrock's own names: what a cache had and got is counted apart from the input",
        {
            "inputTokens": 50,
            "outputTokens": 70,
            "totalTokens": 2520,
            "cacheReadInputTokens": 2000,
            "cacheWriteInputTokens": 400,
        },
        (2450, 70, 2000, 400),
        50 * 1250 + 2000 * 200 + 400 * 1_5625 // 10 + 70 * 2500,
    ),
    (
        "embeddings: a prompt and a sum",
        {"prompt_tokens": 8, "total_tokens": 8},
        (8, 0, 0, 0),
        8 * 1250,
    ),
    (
        "a completion left out, a sum given",
        {"prompt_tokens": 8, "total_tokens": 20, "completion_tokens": None},
        (8, 12, 0, 0),
        8 * 1250 + 12 * 2500,
    ),
    (
        "a prompt left out, a sum given",
        {"completion_tokens": 12, "total_tokens": 20},
        (8, 12, 0, 0),
        8 * 1250 + 12 * 2500,
    ),
    (
        "a sum and nothing else: what did not come as output is the prompt",
        {"total_tokens": 20},
        (17, 3, 0, 0),
        17 * 1250 + 3 * 2500,
    ),
    (
        "numbers as floats, details that are null",
        {
            "prompt_tokens": 8.0,
            "completion_tokens": 12.0,
            "total_tokens": 20.0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        (8, 12, 0, 0),
        8 * 1250 + 12 * 2500,
    ),
    (
        "a sum that is too small is not believed",
        {"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 3},
        (8, 12, 0, 0),
        8 * 1250 + 12 * 2500,
    ),
    (
        "a sum with more in it than thinking: only what is told is billed",
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 190,
            "completion_tokens_details": {"reasoning_tokens": 50},
        },
        (100, 60, 0, 0, 50),
        100 * 1250 + 60 * 2500,
    ),
    (
        "more cached than there is: all of it, and no more",
        {
            "prompt_tokens": 10,
            "completion_tokens": 1,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 99, "cache_write_tokens": 5},
        },
        (10, 1, 10, 0),
        10 * 200 + 2500,
    ),
    (
        "Gemini's own names: thoughts come on top also where there is no sum",
        {"promptTokenCount": 8, "candidatesTokenCount": 20, "thoughtsTokenCount": 10},
        (8, 30, 0, 0, 10),
        8 * 1250 + 30 * 2500,
    ),
    (
        "Gemini's own names: it thought and did not answer",
        {"promptTokenCount": 8, "thoughtsTokenCount": 50, "totalTokenCount": 58},
        (8, 50, 0, 0, 50),
        8 * 1250 + 50 * 2500,
    ),
    (
        "Gemini's own names: what its tools put before the model is prompt",
        {
            "promptTokenCount": 8,
            "candidatesTokenCount": 10,
            "toolUsePromptTokenCount": 100,
            "thoughtsTokenCount": 5,
            "totalTokenCount": 123,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 8}],
        },
        (108, 15, 0, 0, 5),
        108 * 1250 + 15 * 2500,
    ),
    (
        "Gemini's names as its Python library spells them",
        {
            "prompt_token_count": 8,
            "cached_content_token_count": 4,
            "candidates_token_count": 20,
            "thoughts_token_count": 10,
            "total_token_count": 38,
        },
        (8, 30, 4, 0, 10),
        4 * 1250 + 4 * 200 + 30 * 2500,
    ),
    (
        "OpenAI's names in the spelling of JavaScript",
        {
            "promptTokens": 9,
            "completionTokens": 6,
            "totalTokens": 15,
            "cachedInputTokens": 2,
            "reasoningTokens": 3,
        },
        (9, 6, 2, 0, 3),
        7 * 1250 + 2 * 200 + 6 * 2500,
    ),
    (
        "LangChain: details without the word tokens, within the input",
        {
            "input_tokens": 350,
            "output_tokens": 240,
            "total_tokens": 590,
            "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
            "output_token_details": {"audio": 10, "reasoning": 200},
        },
        (350, 240, 100, 200, 200),
        50 * 1250 + 100 * 200 + 200 * 1_5625 // 10 + 240 * 2500,
    ),
    (
        "Anthropic's written tokens by how long they are kept, and not as one number",
        {
            "input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 7,
        },
        (450, 7, 0, 400),
        50 * 1250 + 400 * 1_5625 // 10 + 7 * 2500,
    ),
    (
        "Anthropic's names with a sum that has the cached input inside",
        {"input_tokens": 2050, "cache_read_input_tokens": 2000, "output_tokens": 70, "total_tokens": 2120},
        (2050, 70, 2000, 0),
        50 * 1250 + 2000 * 200 + 70 * 2500,
    ),
    (
        "Anthropic's names with a sum that has it on top",
        {"input_tokens": 50, "cache_read_input_tokens": 2000, "output_tokens": 70, "total_tokens": 2120},
        (2050, 70, 2000, 0),
        50 * 1250 + 2000 * 200 + 70 * 2500,
    ),
    (
        "Bedrock's counts of a cache under their other name",
        {"inputTokens": 50, "outputTokens": 70, "totalTokens": 2120, "cacheReadInputTokenCount": 2000},
        (2050, 70, 2000, 0),
        50 * 1250 + 2000 * 200 + 70 * 2500,
    ),
    (
        "thinking and cached input both on top, as the sum says",
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 199,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        (96, 103, 64, 0, 94),
        32 * 1250 + 64 * 200 + 103 * 2500,
    ),
    (
        "Cohere: what is billed stands beside what was there",
        {
            "billed_units": {"input_tokens": 10, "output_tokens": 5},
            "tokens": {"input_tokens": 70, "output_tokens": 5},
        },
        (10, 5, 0, 0),
        10 * 1250 + 5 * 2500,
    ),
    (
        "one level further in",
        {"usage": {"prompt_tokens": "11", "completion_tokens": 2.0}},
        (11, 2, 0, 0),
        11 * 1250 + 2 * 2500,
    ),
    (
        "both sets of names, of which one says nothing",
        {
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "input_tokens": 50,
            "output_tokens": 9,
            "total_tokens": 59,
        },
        (50, 9, 0, 0),
        50 * 1250 + 9 * 2500,
    ),
    (
        "numbers written out in other ways",
        {"prompt_tokens": "1,000", "completion_tokens": "2.5e1", "total_tokens": 1.025e3},
        (1000, 25, 0, 0),
        1000 * 1250 + 25 * 2500,
    ),
    (
        "Qwen's written tokens, told twice",
        {
            "prompt_tokens": 2000,
            "completion_tokens": 10,
            "total_tokens": 2010,
            "prompt_tokens_details": {
                "cached_tokens": 0,
                "cache_creation": {"ephemeral_5m_input_tokens": 1500},
                "cache_creation_input_tokens": 1500,
                "cache_type": "ephemeral",
            },
        },
        (2000, 10, 0, 1500),
        500 * 1250 + 1500 * 1_5625 // 10 + 10 * 2500,
    ),
    (
        "Ollama's own names",
        {"prompt_eval_count": 26, "eval_count": 298},
        (26, 298, 0, 0),
        26 * 1250 + 298 * 2500,
    ),
    (
        "details that are lists, texts and negative numbers say nothing",
        {
            "prompt_tokens": 8,
            "completion_tokens": 12,
            "prompt_tokens_details": [{"cached_tokens": 3}],
            "completion_tokens_details": "none",
            "cached_tokens": -4,
        },
        (8, 12, 0, 0),
        8 * 1250 + 12 * 2500,
    ),
]


@pytest.mark.parametrize(("name", "written", "expected", "nano"), SHAPES, ids=[row[0] for row in SHAPES])
def test_each_shape_has_its_tokens_and_its_price(
    name: str, written: dict[str, Any], expected: tuple[int, ...], nano: int
) -> None:
    usage = read_usage(written, 3)
    assert usage == Usage(*expected)
    assert PRICE.nano_usd(usage) == nano
    assert PRICE.usd(usage) == pytest.approx(nano / 1e9, abs=1e-15)


def test_the_bill_of_the_public_report_is_right_to_the_nano_dollar() -> None:
    usage = read_usage(SHAPES[1][1])
    assert usage is not None
    assert PRICE.usd(usage) == 0.0232856


@pytest.mark.parametrize(
    "value",
    [None, [], "7", 7, {}, {"prompt_tokens": "seven"}, {"total_tokens": -1}, {"completion_tokens": True}],
)
def test_what_is_no_usage_is_none(value: Any) -> None:
    assert read_usage(value) is None


@pytest.mark.parametrize(
    ("told", "counted", "charged", "estimated"),
    [
        (None, 101, Usage(45, 101), True),
        (Usage(40, 7), 14, Usage(40, 14), True),  # one of two choices is told
        (Usage(40, 14), 7, Usage(40, 14), False),  # several tokens in one event
        (Usage(0, 7), 7, Usage(45, 7), True),
        (Usage(40, 7, 30, 5), 9, Usage(40, 9, 30, 5), True),
    ],
)
def test_what_was_counted_is_the_floor_and_the_stand_in(
    told: Usage | None, counted: int, charged: Usage, estimated: bool
) -> None:
    assert charge(told, counted, weighed_tokens=45) == Charge(charged, estimated)


COUNTS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, MOST_TOKENS + 5), st.floats(), st.text(max_size=3), st.just([])
)
NAMES = st.sampled_from(sorted({name for row in SHAPES for name in row[1]} - {"cost"}))


@given(st.dictionaries(NAMES, COUNTS), st.one_of(st.none(), st.integers(0, 1000)))
def test_whatever_a_server_writes_costs_no_less_than_nothing(value: Any, counted: int | None) -> None:
    usage = read_usage(value, counted)
    if usage is None:
        return
    assert min(usage.prompt_tokens, usage.output_tokens, usage.cached_tokens, usage.written_tokens) >= 0
    assert usage.cached_tokens + usage.written_tokens <= usage.prompt_tokens
    assert 0 <= PRICE.nano_usd(usage) <= round(PRICE.at_most(usage.prompt_tokens, usage.output_tokens) * 1e9)


RATES = st.integers(0, 10**9).map(lambda nano: nano / 1e6)


@given(st.integers(0, 10**6), st.integers(0, 10**6), RATES, RATES)
def test_money_is_what_whole_numbers_say(prompt: int, output: int, rate: float, other: float) -> None:
    pico = prompt * round(rate * 1e6) + output * round(other * 1e6)
    assert Price(rate, other).nano_usd(Usage(prompt, output)) == (pico + 500) // 1000
