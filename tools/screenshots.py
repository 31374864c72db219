"""Take the pictures of the console that the guides show: real servers, loaded, in a Chromium without a window.

python -m tools.screenshots [--out docs/guide/pictures] [--only now-light]

A model answers for `now`, `chat` and `ticket`; a gateway with routes over four simulated replicas for `gateway` and
`fleet`.
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

from tests.server.console.chromium import Tab, browser
from tests.server.running import free_port

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
OPERATOR = "the-key-of-whoever-runs-it"
#: Seconds of load before the first picture, so that charts have something to show.
WARM = 40.0
WIDTH, HEIGHT, LARGEST = 1180, 760, 150_000

FLEET = """
admin_key: {operator}
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
    "Write a short poem about the sea.",
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


@contextmanager
def loaded(url: str, models: tuple[str, ...], clients: int) -> Iterator[None]:
    """Clients of three tenants that ask one thing after the other, until the block ends."""
    ended = threading.Event()

    def ask(number: int) -> None:
        draw = random.Random(number)
        while not ended.is_set():
            text = " ".join([draw.choice(QUESTIONS)] * draw.choice((1, 1, 2, 6)))
            body = {
                "model": draw.choice(models),
                "messages": [
                    {"role": "system", "content": "You are brief."},
                    {"role": "user", "content": text},
                ],
                "max_tokens": draw.choice((12, 40, 90)),
                "weighbridge": {
                    "tenant": ("ann", "ben", "night batch")[number % 3],
                    "priority": 5 if number % 3 == 2 else 0,
                    "placement": draw.choice(("auto", "prefer_cloud")) if "auto" in models else None,
                },
            }
            body["weighbridge"] = {
                key: value for key, value in body["weighbridge"].items() if value is not None
            }
            request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
            with suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(request, timeout=60).read()
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


def chat(tab: Tab, url: str) -> None:
    tab.go(f"{url}/#chat")
    tab.until("document.querySelector('.compose textarea')")
    if not tab.run("!!document.querySelector('.figures')"):
        tab.run("document.querySelector('.compose textarea').focus()")
        tab.type("Write a Python function that adds two numbers, and say what it does.")
        tab.press("Enter")
        tab.until("document.querySelector('.figures')?.textContent.includes('tok/s')", 90)


def ticket(tab: Tab, url: str) -> None:
    with urllib.request.urlopen(f"{url}/v1/tickets?limit=20", timeout=10) as answer:
        found = [one["id"] for one in json.load(answer)["data"] if one.get("output_tokens", 0) > 20]
    tab.go(f"{url}/#tickets/{found[0]}")
    tab.until("document.body.innerText.includes('Where its time went')")
    time.sleep(1)


def fleet(tab: Tab, url: str) -> None:
    tab.go(f"{url}/")
    tab.until("document.querySelector('#sign')")
    tab.run(f"sessionStorage.setItem('weighbridge-key', {json.dumps(OPERATOR)})")
    if not tab.run("!!document.querySelector('nav a[href=\"#fleet\"]')"):
        tab.run("document.querySelector('#sign').click()")
        tab.until("document.querySelector('dialog input') === document.activeElement")
        tab.type(OPERATOR)
        tab.press("Enter")
        tab.until("document.querySelector('nav a[href=\"#fleet\"]')")
    tab.run("location.hash = '#fleet'")
    tab.until("document.querySelector('#main table')")
    time.sleep(2)


#: Each picture by its name: which server it is of, what brings its page up, and in which colours it is taken.
PICTURES: dict[str, tuple[str, Callable[[Tab, str], None], str]] = {
    f"{name}-{scheme}": (server, shown, scheme)
    for name, server, shown in (
        ("now", "model", now),
        ("chat", "model", chat),
        ("ticket", "model", ticket),
        ("gateway", "gateway", now),
        ("fleet", "gateway", fleet),
    )
    for scheme in ("light", "dark")
}


def take(tab: Tab, name: str, url: str, folder: Path) -> Path:
    _, shown, scheme = PICTURES[name]
    tab.size(WIDTH, HEIGHT)
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
    if kind == "model":
        return stack.enter_context(serving(["serve", MODEL])), (MODEL,)
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
