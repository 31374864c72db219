"""`weighbridge keys`: make the keys that servers ask for, and what is written in their place."""

from __future__ import annotations

import sys
from getpass import getpass

from weighbridge.cli.options import JsonOutput
from weighbridge.cli.terminal import errors, print_json
from weighbridge.errors import BadInput
from weighbridge.secret import Secret
from weighbridge.wire.keys import SHORTEST_KEY, hash_of, is_short, new_key


def new(json_output: JsonOutput = False) -> None:
    """Make a key for a client, and the hash for the server's configuration; neither is kept anywhere."""
    key = new_key()
    if json_output:
        print_json({"key": key.reveal(), "hash": hash_of(key)})
        return
    print(f"key   {key.reveal()}")
    print(f"hash  {hash_of(key)}")
    errors.print(
        "[dim]the key is for the client; the hash stands for it in --api-key, `key:` and `admin_key:`[/]"
    )


def hash_key(json_output: JsonOutput = False) -> None:
    """Read a key from standard input, so that no history of commands keeps it, and print its hash."""
    key = Secret((getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip())
    if not key:
        raise BadInput("no key came on standard input; write for example `weighbridge keys hash < FILE`")
    if is_short(key):
        errors.print(f"this key has fewer than {SHORTEST_KEY} characters: whoever has the hash can find it")
    if json_output:
        print_json({"hash": hash_of(key)})
    else:
        print(hash_of(key))
