"""Work that a process of `weighbridge.forks` does for the tests: some of it never ends."""

from weighbridge.forks import Answer, serve


def prepared(given: bytes) -> Answer:
    """Answers with what was given, spins, or grows."""

    def answer(question: bytes) -> bytes:
        while question == b"spin":
            pass
        kept = []
        while question == b"grow":
            kept.append(bytes(1 << 20))
        return given + b" " + question

    return answer


if __name__ == "__main__":
    serve(prepared)
