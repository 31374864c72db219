"""Chats with pictures: what they weigh, from published formulas, and where they go."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.backends import Backend, all_served, fleet
from weighbridge.cost.length import OutputLengths
from weighbridge.fleet.abilities.images import formula_of, image_tokens, size_of
from weighbridge.fleet.load.weigher import Scales
from weighbridge.wire.protocols.chat import ChatProtocol


def data_url(raw: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(raw).decode()


def png(width: int, height: int) -> str:
    return data_url(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0")


def jpeg(width: int, height: int, before: int = 3000) -> str:
    exif = b"\xff\xe1" + struct.pack(">H", before + 2) + b"x" * before
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\x03" + b"\0" * 9
    return data_url(b"\xff\xd8" + exif + frame, "jpeg")


def webp(width: int, height: int) -> str:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return data_url(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + size, "webp")


def messages(*urls: str, text: str = "What is it?", detail: str = "auto") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": detail}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]


# -- sizes and formulas ----------------------------------------------------------------------------------


@given(st.integers(1, 60000), st.integers(1, 60000), st.sampled_from([png, jpeg, webp]))
def test_sizes_are_read_from_the_first_bytes(width: int, height: int, write: Any) -> None:
    assert size_of(write(width, height)) == (width, height)


def test_gif_and_what_is_no_picture() -> None:
    assert size_of(data_url(b"GIF89a" + struct.pack("<HH", 640, 480))) == (640, 480)
    for url in (
        "https://example.com/cat.png",
        "http://10.0.0.1/x",
        "data:image/png;base64,####",
        "data:,x",
        "",
    ):
        assert size_of(url) is None
    assert size_of(png(0, 5)) is None
    assert size_of(jpeg(640, 480, before=65000)) == (640, 480)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"GIF89a"]))
def test_no_bytes_break_the_reader(raw: bytes, head: bytes) -> None:
    size = size_of(data_url(head + raw))
    assert size is None or min(size) > 0


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", (1024, 1024), "high", 765),  # the examples of OpenAI's page
        ("gpt-4o", (2048, 4096), "high", 1105),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("claude-sonnet", (1000, 1000), "auto", 1334),  # those of Anthropic's
        ("claude-sonnet", (200, 200), "auto", 54),
        ("gemini-2.5-flash", (384, 384), "auto", 258),  # and of Google's
        ("gemini-2.5-flash", (1536, 768), "auto", 516),
        ("Qwen2.5-VL-7B-Instruct", (224, 224), "auto", 66),  # 8 x 8 patches of 28, and both ends
        ("pixtral-12b", (1024, 1024), "auto", 4160),  # 64 rows of 64 patches and a break
        ("llava-1.5-7b", (1000, 200), "auto", 576),
        ("google/gemma-3-4b-it", (900, 900), "auto", 256),
    ],
)
def test_pictures_weigh_what_their_makers_say(
    model: str, size: tuple[int, int], detail: str, tokens: int
) -> None:
    assert formula_of(model)(size, detail) == tokens


@given(
    st.integers(1, 65536),
    st.integers(1, 65536),
    st.sampled_from(["gpt-4o", "claude", "gemini", "qwen2-vl", "pixtral", "llava", "x"]),
)
def test_every_picture_has_a_weight_within_reason(width: int, height: int, model: str) -> None:
    tokens = formula_of(model)((width, height), "auto")
    assert tokens > 0
    assert model == "gemini" or tokens <= 20_000


def test_links_weigh_what_a_usual_picture_does() -> None:
    assert image_tokens("gpt-4o", messages("https://example.com/a.png")) == formula_of("gpt-4o")(
        (1024, 768), "auto"
    )
    assert image_tokens("gpt-4o", [{"role": "user", "content": "image_url"}]) == 0


# -- at the scales ---------------------------------------------------------------------------------------


async def test_usage_corrects_what_pictures_weigh() -> None:
    scales = Scales(OutputLengths(), family="gpt-4o")
    ask = ChatProtocol().read(json.dumps({"messages": messages(png(1024, 1024))}).encode())
    weight, weighed = await scales.weigh(ask)
    assert not weight.exact
    assert 765 < weight.prompt_tokens < 765 + 40
    text = weight.prompt_tokens - 765
    for _ in range(40):
        scales.settle(weighed, text + 2 * 765)
    weight, _ = await scales.weigh(ask)
    assert weight.prompt_tokens == pytest.approx(text + 2 * 765, rel=0.01)
    plain = ChatProtocol().read(b'{"messages": [{"role": "user", "content": "What is it?"}]}')
    assert (await scales.weigh(plain))[0].prompt_tokens < 40, "texts weigh what they did"


# -- where they go ---------------------------------------------------------------------------------------


async def test_the_ticket_says_what_a_picture_weighs() -> None:
    one = Backend("one")
    async with fleet(one) as front, front.post(messages=messages(png(1024, 1024))) as answer:
        ticket = await front.get(f"/v1/tickets/{answer.headers['x-weighbridge-ticket']}")
        assert 765 < ticket["weighed_tokens"] < 900
        sent = one.calls[0]["messages"][0]["content"][1]["image_url"]["url"]
    assert sent == png(1024, 1024), "it goes on as it came"


ROUTE = """
health: {{interval: 0.05}}
models:
  here: {{replicas: [{{name: here, url: '{here}', dialect: weighbridge, abilities: {{vision: {sees}}}}}]}}
  there: {{replicas: [{{name: there, url: '{there}', dialect: weighbridge}}]}}
routes:
  auto: {{edge: {{model: here}}, cloud: {{model: there}}, residency: redact_then_cloud}}
"""


@pytest.mark.parametrize("sees", [True, False])
async def test_in_a_redacting_route_a_picture_stays_local(sees: bool) -> None:
    here, there = Backend("here"), Backend("there")
    async with all_served((here, there)):
        config = ROUTE.format(here=here.url, there=there.url, sees=str(sees).lower())
        async with fleet(config=config) as front:
            fields = {"model": "auto", "messages": messages(png(64, 64))}
            async with front.post(**fields) as answer:
                body = await answer.json()
            assert answer.status == (200 if sees else 400), body
            if not sees:
                assert body["error"]["code"] == "no_replica_can"
                assert "it has no images" in body["error"]["message"]
            async with front.post(**fields, weighbridge={"placement": "only_cloud"}) as answer:
                assert answer.status == 403
    assert not there.calls
    assert len(here.calls) == sees


async def test_a_picture_goes_to_the_place_of_a_route_whose_replicas_can_see() -> None:
    here, there = Backend("here"), Backend("there")
    async with all_served((here, there)):
        config = ROUTE.format(here=here.url, there=there.url, sees="false")
        config = config.replace("redact_then_cloud", "free")
        fields = {"model": "auto", "messages": messages(png(64, 64))}
        async with fleet(config=config) as front, front.post(**fields) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["x-weighbridge-placement"] == "cloud"
    assert (len(here.calls), len(there.calls)) == (0, 1)
