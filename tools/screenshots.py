"""Take the pictures of the console that the guides show: real servers, loaded, in a Chromium without a window.

python -m tools.screenshots [--out docs/guide/pictures] [--only now-light]

Models answer for `now` and `chat`; a gateway with routes over four simulated replicas for `gateway`, `ticket` and
`fleet`. `phone` is that gateway on a phone.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.server.console.chromium import Tab, browser
from tests.server.running import free_port

ROOT = Path(__file__).resolve().parents[1]
MODEL, CODER = "smollm2-135m-instruct", "qwen2.5-coder-0.5b"
OPERATOR = "the-key-of-whoever-runs-it"
KEYS = {"ann": "a-key-of-ann-herself", "ben": "a-key-of-ben-himself", "night-batch": "a-key-of-night-batch"}
TENANTS = tuple(KEYS)
#: Seconds of load before the first picture, so that charts have something to show.
WARM = 40.0
#: Pixels of a picture, across and down, and the most bytes of one.
DESK, PHONE, LARGEST = (1180, 860), (390, 844), 150_000

#: Nobody has to listen for traces: tickets name them all the same.
FLEET = """
otlp_endpoint: http://127.0.0.1:4318
admin_key: {operator}
tenants:
  ann: {{key: a-key-of-ann-herself, limits: {{tokens_per_minute: 20000, requests_per_minute: 120}}}}
  ben: {{key: a-key-of-ben-himself, limits: {{usd_per_day: 5}}}}
  night-batch: {{key: a-key-of-night-batch, priority: 5}}
models:
  small:
    replicas:
      - {{name: desk-1, url: "{0}", dialect: weighbridge}}
      - {{name: desk-2, url: "{1}", dialect: weighbridge}}
      - {{name: rack-1, url: "{2}", dialect: weighbridge, price: {{output_usd_per_million: 0.4}}}}
  large:
    replicas:
      - {{name: rented, url: "{3}", dialect: weighbridge, price: {{output_usd_per_million: 10}}}}
routes:
  auto: {{edge: {{model: small}}, cloud: {{model: large}}, residency: redact_then_cloud, cascade: {{enabled: false}}}}
budgets: {{usd_per_day: 20}}
"""
QUESTIONS = (
    "Write a short poem about the sea to jane.doe@example.com.",
    "What is the capital of Japan?",
    "Explain what a scale is to a child.",
    "List five fruits, one on each line.",
    "Why is the sky blue?",
)


@contextmanager
def serving(words: list[str]) -> Iterator[str]:
    """A server of ours at a free port, until the block ends; yields its address once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "weighbridge", *words, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and not _is_ready(url):
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{url}/health/ready", timeout=5).status == 200)
    except (OSError, urllib.error.URLError):
        return False


def asked(url: str, key: str, body: Any = None) -> bytes:
    """What a server answers somebody with a key."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


@contextmanager
def loaded(url: str, models: tuple[str, ...], clients: int) -> Iterator[None]:
    """Clients of three tenants that ask one thing after the other, until the block ends."""
    ended = threading.Event()

    def ask(number: int) -> None:
        draw = random.Random(number)
        while not ended.is_set():
            text = " ".join([draw.choice(QUESTIONS)] * draw.choice((1, 1, 2, 6)))
            tenant = TENANTS[number % len(TENANTS)]
            model = draw.choice(models)
            body = {
                "model": model,
                "messages": [
                    {"role": "system", "content": "You are brief."},
                    {"role": "user", "content": text},
                ],
                "stream": draw.random() < 0.7,
                "max_tokens": draw.choice((12, 40, 90)),
                "weighbridge": {"tenant": tenant, "priority": 5 if tenant == TENANTS[-1] else 0},
            }
            if model == "auto":
                body["weighbridge"]["placement"] = draw.choice(("auto", "prefer_cloud"))
            with suppress(OSError, urllib.error.URLError):
                asked(f"{url}/v1/chat/completions", KEYS[tenant], body)
            ended.wait(draw.expovariate(2.0))

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(WARM)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(60)


def now(tab: Tab, url: str) -> None:
    tab.go(f"{url}/#now")
    tab.until("document.querySelector('#main svg, #main canvas')")
    time.sleep(3)


def gateway(tab: Tab, url: str) -> None:
    tab.go(f"{url}/?key={OPERATOR}#now")
    tab.until("document.querySelectorAll('[aria-label=Replicas] tbody tr').length === 4")
    time.sleep(3)


def chat(tab: Tab, url: str) -> None:
    tab.go(f"{url}/#chat")
    tab.until("document.querySelector('.compose textarea')")
    if tab.run("!!document.querySelector('aside li a')"):
        tab.run("document.querySelector('aside li a').click()")
        tab.until("document.querySelector('.figures')")
    else:
        tab.run("document.querySelector('.compose textarea').focus()")
        tab.type("Write a Python function that adds two numbers, and say what it does.")
        tab.press("Enter")
        tab.until("document.querySelector('.figures')?.textContent.includes('tok/s')", 90)


def ticket(tab: Tab, url: str) -> None:
    """One of a route that had to take something out of what it sent to the cloud."""
    while not (found := [one["id"] for one in tickets(url) if one["left_machine"] and "EMAIL" in str(one)]):
        time.sleep(1)
    tab.go(f"{url}/?key={OPERATOR}#tickets/{found[0]}")
    tab.until("document.body.innerText.includes('What left this machine')")
    time.sleep(1)


def tickets(url: str) -> list[dict[str, Any]]:
    """The route's latest that have ended."""
    data = json.loads(asked(f"{url}/v1/tickets?limit=200&model=auto", OPERATOR))["data"]
    return [one for one in data if one["finished"] is not None]


def fleet(tab: Tab, url: str) -> None:
    tab.go(f"{url}/?key={OPERATOR}#fleet")
    tab.until("document.querySelectorAll('[aria-label=Replicas] tbody tr').length === 4")
    tab.until("document.querySelectorAll('[aria-label=Tenants] tbody tr').length === 3")
    time.sleep(2)


#: Each picture by its name: which server it is of, what brings its page up, how large it is, and in which colours.
PICTURES: dict[str, tuple[str, Callable[[Tab, str], None], tuple[int, int], str]] = {
    f"{name}-{scheme}": (server, shown, size, scheme)
    for name, server, shown, size in (
        ("now", "model", now, DESK),
        ("chat", "coder", chat, DESK),
        ("gateway", "gateway", gateway, DESK),
        ("ticket", "gateway", ticket, DESK),
        ("fleet", "gateway", fleet, DESK),
        ("phone", "gateway", gateway, PHONE),
    )
    for scheme in ("light", "dark")
}


def take(tab: Tab, name: str, url: str, folder: Path) -> Path:
    _, shown, size, scheme = PICTURES[name]
    tab.size(*size, phone=size == PHONE)
    tab.colours(scheme)
    shown(tab, url)
    data = base64.b64decode(tab.call("Page.captureScreenshot", format="webp", quality=82)["data"])
    if len(data) > LARGEST:
        raise SystemExit(f"{name} has {len(data)} bytes, more than {LARGEST}")
    path = folder / f"{name}.webp"
    path.write_bytes(data)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "guide" / "pictures")
    parser.add_argument("--only", action="append", choices=PICTURES, help="these alone; may repeat")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.only or list(PICTURES)
    for kind in dict.fromkeys(PICTURES[name][0] for name in names):
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            url, models = _server(kind, Path(folder), stack)
            profile = Path(folder, "browser")
            profile.mkdir()
            if kind != "coder":  # a chat of one's own is shown as it is for who is alone
                stack.enter_context(loaded(url, models, 6))
            tab = stack.enter_context(browser(profile))
            for name in names:
                if PICTURES[name][0] == kind:
                    path = take(tab, name, url, given.out)
                    print(
                        f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: {path.stat().st_size} bytes"
                    )


def _server(kind: str, folder: Path, stack: ExitStack) -> tuple[str, tuple[str, ...]]:
    """Start what a picture is of; its address, and the names that may be asked for."""
    if kind != "gateway":
        name = MODEL if kind == "model" else CODER
        return stack.enter_context(serving(["serve", name])), (name,)
    speeds = ("1", "1", "1.6", "0.6")
    names = ("small", "small", "small", "large")
    urls = [
        stack.enter_context(
            serving(["replica", "--simulated", "--served-model-name", name, "--time-scale", speed])
        )
        for name, speed in zip(names, speeds, strict=True)
    ]
    config = folder / "fleet.yaml"
    config.write_text(FLEET.format(*urls, operator=OPERATOR), encoding="utf-8")
    return stack.enter_context(serving(["serve", "--config", str(config)])), ("small", "auto")


if __name__ == "__main__":
    main()
