"""The words of the protocol between Envoy and an endpoint picker, as protobuf: what is read of them, what is said.

The Gateway API inference extension's proposal 004 on top of Envoy's external processing (ext_proc). Needs the extra
`epp`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct

from weighbridge.server.picker.messages import (
    DUPLEX,
    OVERWRITE,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HeaderValue,
    HeaderValueOption,
    HttpStatus,
    ImmediateResponse,
    ProcessingResponse,
    TrailersResponse,
)

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD = "Process"

#: Where Envoy is told an endpoint: a header, and an entry of metadata.
DESTINATION, NAMESPACE = "x-gateway-destination-endpoint", "envoy.lb"
#: Where Envoy says which endpoints there are to choose from, and which one it was in the end.
SUBSET, SUBSET_NAMESPACE = "x-gateway-destination-endpoint-subset", "envoy.lb.subset_hint"
SERVED = "x-gateway-destination-endpoint-served"
#: Who is asked for, where a gateway says so: requests of one such name have one share.
FAIRNESS = "x-gateway-inference-fairness-id"

#: Bytes of one piece of a body that is given back: Envoy wants no more than 64 KiB.
PIECE = 60_000

#: Names and values of headers to be set.
Set = Sequence[tuple[str, str]]


def headers_in(sent: Any) -> list[tuple[bytes, bytes]]:
    """The headers of a message; Envoy writes values in one of two fields."""
    return [(one.key.encode("latin-1"), one.raw_value or one.value.encode()) for one in sent.headers.headers]


def subset_in(message: Any) -> list[str] | None:
    """The endpoints that may be chosen from; None: any."""
    hint = message.metadata_context.filter_metadata.get(SUBSET_NAMESPACE)
    if hint is None or SUBSET not in hint.fields:
        return None
    value = hint.fields[SUBSET]
    if value.WhichOneof("kind") == "string_value":  # as the header has it
        return [one.strip() for one in value.string_value.split(",") if one.strip()]
    return [one.string_value for one in value.list_value.values if one.string_value]


def served_in(message: Any) -> str:
    """The endpoint that answered; empty where nobody says so."""
    told = message.metadata_context.filter_metadata.get(NAMESPACE)
    return told.fields[SERVED].string_value if told is not None and SERVED in told.fields else ""


def _mutation(to_set: Set, to_remove: Iterable[str] = ()) -> Any:
    return HeaderMutation(
        set_headers=[
            HeaderValueOption(
                header=HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")),
                append_action=OVERWRITE,
            )
            for name, value in to_set
        ],
        remove_headers=list(to_remove),
    )


def _destination(endpoints: Sequence[str]) -> Struct:
    told = Struct()
    told.get_or_create_struct(NAMESPACE)[DESTINATION] = ",".join(endpoints)
    return told


def go_on() -> Any:
    """Headers of a request are read; what comes of them is said with its body."""
    return ProcessingResponse(request_headers=HeadersResponse())


def sent_on(
    endpoints: Sequence[str], to_set: Set, to_remove: Iterable[str], body: bytes | None, *, with_body: bool
) -> Any:
    """Where a request goes, in order, said with its headers or `with_body`. `body`: what stands for its own; None: that
    stays."""
    common = CommonResponse(
        header_mutation=_mutation([(DESTINATION, ",".join(endpoints)), *to_set], to_remove),
        clear_route_cache=True,
    )
    if body is not None:
        common.body_mutation.body = body
    said = ProcessingResponse(dynamic_metadata=_destination(endpoints))
    (said.request_body if with_body else said.request_headers).response.CopyFrom(common)
    return said


def body_pieces(body: bytes, *, ends: bool) -> Iterable[Any]:
    """A request's body, given back in pieces. `ends`: no trailers follow."""
    for at in range(0, max(len(body), 1), PIECE):
        said = ProcessingResponse()
        piece = said.request_body.response.body_mutation.streamed_response
        piece.body = body[at : at + PIECE]
        piece.end_of_stream = ends and at + PIECE >= len(body)
        yield said


def request_trailers() -> Any:
    return ProcessingResponse(request_trailers=TrailersResponse())


def answer_headers(to_set: Set) -> Any:
    """An answer's headers go by, with some of ours."""
    return ProcessingResponse(
        response_headers=HeadersResponse(response=CommonResponse(header_mutation=_mutation(to_set)))
    )


class PassedBody:
    """What lets pieces of an answer's body go by as they are: one message for all of an answer, written anew each
    time."""

    def __init__(self, mode: int) -> None:
        self._said = ProcessingResponse()
        self._piece: Any = None
        if mode == DUPLEX:
            self._piece = self._said.response_body.response.body_mutation.streamed_response
        else:
            self._said.response_body.SetInParent()

    def of(self, sent: Any) -> bytes:
        """The message for this piece."""
        if self._piece is not None:
            self._piece.body, self._piece.end_of_stream = sent.body, sent.end_of_stream
        return bytes(self._said.SerializeToString())


def request_body(mode: int, sent: Any) -> Any:
    """A piece of a request's body goes by as it is."""
    said = ProcessingResponse()
    _pass(said.request_body, mode, sent)
    return said


def _pass(part: Any, mode: int, sent: Any) -> None:
    if mode == DUPLEX:
        piece = part.response.body_mutation.streamed_response
        piece.body, piece.end_of_stream = sent.body, sent.end_of_stream
    else:
        part.SetInParent()


def answer_trailers() -> Any:
    return ProcessingResponse(response_trailers=TrailersResponse())


def refusal(status: int, headers: Mapping[str, str], body: bytes, details: str) -> Any:
    """An answer of our own: the request goes nowhere."""
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=status),
            headers=_mutation([*headers.items()]),
            body=body,
            details=details,
        )
    )
