"""A page in Chromium that is of another origin than the server which it asks: what its scripts may do and read."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.server.console.chromium import PROGRAM, Tab, browser
from tests.server.running import free_port, running, wait_until_ready

pytestmark = [pytest.mark.proof, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")]

KEY = "key-of-a-page-of-others"
#: Names of sites, all of which are this machine to the browser: one that is named to the server, and one that is not.
NAMED, UNNAMED = "chat.example", "evil.example"

#: What a page does: each step as its client library would, with the headers that a browser asks leave for.
SCRIPT = """
(async () => {
  const server = %(server)s, key = %(key)s;
  const post = (path, body, headers, signal) => fetch(server + path, {method: "POST", signal,
    headers: {"content-type": "application/json", ...headers}, body: JSON.stringify({model: "simulated", ...body})});
  const bearer = {authorization: "Bearer " + key}, messages = [{role: "user", content: "What does it weigh?"}];
  const found = {};
  try {
    found.list = (await (await fetch(server + "/v1/models", {headers: bearer})).json()).data[0].id;
  } catch (error) { return {refused: String(error)}; }
  const chat = await post("/v1/chat/completions", {messages, max_tokens: 5}, {...bearer, "x-weighbridge-labels": "a"});
  found.chat = (await chat.json()).usage.completion_tokens;
  found.ticket = chat.headers.get("x-weighbridge-ticket") !== null;
  const stream = await post("/v1/chat/completions", {messages, max_tokens: 5, stream: true}, bearer);
  found.stream = (await stream.text()).endsWith("data: [DONE]\\n\\n");
  const message = await post("/v1/messages", {messages, max_tokens: 5},
    {"x-api-key": key, "anthropic-version": "2023-06-01", "anthropic-dangerous-direct-browser-access": "true"});
  found.message = (await message.json()).usage.output_tokens;
  found.statuses = [
    (await post("/v1/chat/completions", {messages, temperature: 9}, bearer)).status,
    (await post("/v1/chat/completions", {messages}, {authorization: "Bearer nobody"})).status,
    (await post("/v1/chat/completions", {messages, model: "nobody"}, bearer)).status,
  ];
  const leaving = new AbortController();
  const left = await post("/v1/chat/completions", {messages, max_tokens: 4000, stream: true}, bearer, leaving.signal);
  await left.body.getReader().read();
  leaving.abort();
  const id = left.headers.get("x-weighbridge-ticket");
  for (let tries = 0; tries < 200 && !found.left; tries++) {
    const told = await (await fetch(server + "/v1/tickets/" + id, {headers: bearer})).json();
    found.left = told.finish_reason;
    await new Promise(done => setTimeout(done, 50));
  }
  return found;
})()
"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page of others</title>")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def page_port() -> Iterator[int]:
    """Where the page is, whatever the site is called."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as pages:
        thread = threading.Thread(target=pages.serve_forever, daemon=True)
        thread.start()
        yield pages.server_port
        pages.shutdown()
        thread.join()


@pytest.fixture
def server(page_port: int) -> Iterator[str]:
    port = free_port()
    words = [
        "replica",
        "--simulated",
        "--port",
        str(port),
        "--time-scale",
        "0.1",
        "--api-key",
        f"alice={KEY}",
    ]
    words += ["--cors", f"http://{NAMED}:{page_port}"]
    with running([sys.executable, "-m", "weighbridge", *words], 30) as process:
        wait_until_ready(url := f"http://127.0.0.1:{port}", process, 120)
        yield url


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    folder = tmp_path / "browser"
    folder.mkdir()
    names = ", ".join(f"MAP {name} 127.0.0.1" for name in (NAMED, UNNAMED))
    with browser(folder, f"--host-resolver-rules={names}") as tab:
        yield tab


@pytest.mark.parametrize("site", ["localhost", NAMED])
def test_a_page_of_a_site_that_may_call_does_all_that_a_client_does(
    site: str, page_port: int, server: str, tab: Tab
) -> None:
    assert seen(tab, site, page_port, server) == {
        "list": "simulated",
        "chat": 5,
        "ticket": True,
        "stream": True,
        "message": 5,
        "statuses": [400, 401, 404],
        "left": "abort",
    }


def test_a_page_of_any_other_site_reads_nothing(page_port: int, server: str, tab: Tab) -> None:
    assert list(seen(tab, UNNAMED, page_port, server)) == ["refused"]
    assert any("CORS" in one for one in tab.problems)


def seen(tab: Tab, site: str, page_port: int, server: str) -> dict[str, Any]:
    """What the script finds in a page of a site."""
    tab.go(f"http://{site}:{page_port}/")
    tab.until("document.title === 'a page of others'")
    found: dict[str, Any] = tab.run(SCRIPT % {"server": json.dumps(server), "key": json.dumps(KEY)})
    return found
