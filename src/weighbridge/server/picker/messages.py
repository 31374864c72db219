"""The messages of ext_proc and of gRPC's health checks that a picker reads and writes, as tables of fields.

Their numbers and types are those of Envoy's `external_processor.proto` and `base.proto` and of gRPC's `health.proto`;
on the wire nothing else of a message's type counts, and what is not in a table is skipped. So nothing generated is kept
here, and no package of Envoy's whole interface is needed, which would bring its own copies of others' modules.
Enumerations are numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

_PACKAGE = "weighbridge.picker"
_STRUCT = struct_pb2.Struct.DESCRIPTOR.full_name
_Field = descriptor_pb2.FieldDescriptorProto

#: A message's fields: their numbers, and `*` before the type of those that repeat, `map ` before that of a map's values
#: by texts, `NAME|` before that of those of which there is one, NAME.
_Table = Mapping[str, tuple[int, str]]

TABLES: Mapping[str, _Table] = {
    "HeaderValue": {"key": (1, "string"), "value": (2, "string"), "raw_value": (3, "bytes")},
    "HeaderMap": {"headers": (1, "*HeaderValue")},
    "HeaderValueOption": {"header": (1, "HeaderValue"), "append_action": (3, "int32")},
    "Metadata": {"filter_metadata": (1, f"map {_STRUCT}")},
    "HttpHeaders": {"headers": (1, "HeaderMap"), "end_of_stream": (3, "bool")},
    "HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "HttpTrailers": {"trailers": (1, "HeaderMap")},
    "ProtocolConfiguration": {"request_body_mode": (1, "int32"), "response_body_mode": (2, "int32")},
    "ProcessingRequest": {
        "request_headers": (2, "request|HttpHeaders"),
        "response_headers": (3, "request|HttpHeaders"),
        "request_body": (4, "request|HttpBody"),
        "response_body": (5, "request|HttpBody"),
        "request_trailers": (6, "request|HttpTrailers"),
        "response_trailers": (7, "request|HttpTrailers"),
        "metadata_context": (8, "Metadata"),
        "protocol_config": (11, "ProtocolConfiguration"),
    },
    "HeaderMutation": {"set_headers": (1, "*HeaderValueOption"), "remove_headers": (2, "*string")},
    "StreamedBodyResponse": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    "BodyMutation": {
        "body": (1, "mutation|bytes"),
        "streamed_response": (3, "mutation|StreamedBodyResponse"),
    },
    "CommonResponse": {
        "header_mutation": (2, "HeaderMutation"),
        "body_mutation": (3, "BodyMutation"),
        "clear_route_cache": (5, "bool"),
    },
    "HeadersResponse": {"response": (1, "CommonResponse")},
    "BodyResponse": {"response": (1, "CommonResponse")},
    "TrailersResponse": {"header_mutation": (1, "HeaderMutation")},
    "HttpStatus": {"code": (1, "int32")},
    "ImmediateResponse": {
        "status": (1, "HttpStatus"),
        "headers": (2, "HeaderMutation"),
        "body": (3, "bytes"),
        "details": (5, "string"),
    },
    "ProcessingResponse": {
        "request_headers": (1, "response|HeadersResponse"),
        "response_headers": (2, "response|HeadersResponse"),
        "request_body": (3, "response|BodyResponse"),
        "response_body": (4, "response|BodyResponse"),
        "request_trailers": (5, "response|TrailersResponse"),
        "response_trailers": (6, "response|TrailersResponse"),
        "immediate_response": (7, "response|ImmediateResponse"),
        "dynamic_metadata": (8, _STRUCT),
    },
    "HealthCheckRequest": {"service": (1, "string")},
    "HealthCheckResponse": {"status": (1, "int32")},
}

#: `HeaderValueOption.append_action`: what is set takes the place of what was there.
OVERWRITE = 2
#: `ProcessingMode.BodySendMode`: how Envoy sends bodies.
NONE, STREAMED, BUFFERED, DUPLEX = 0, 1, 2, 4
#: `HealthCheckResponse.ServingStatus`.
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def _described(name: str, table: _Table) -> descriptor_pb2.DescriptorProto:
    message = descriptor_pb2.DescriptorProto(name=name)
    choices: list[str] = []
    for field, (number, kind) in table.items():
        choice, _, kind = kind.rpartition("|")
        if choice and choice not in choices:
            choices.append(choice)
            message.oneof_decl.add(name=choice)
        told = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
        if choice:
            told.oneof_index = choices.index(choice)
        if kind.startswith("map "):
            entry = "".join(word.title() for word in field.split("_")) + "Entry"
            nested = _described(entry, {"key": (1, "string"), "value": (2, kind.removeprefix("map "))})
            nested.options.map_entry = True
            message.nested_type.append(nested)
            kind = f"*{name}.{entry}"
        if kind.startswith("*"):
            told.label, kind = _Field.LABEL_REPEATED, kind[1:]
        if kind in ("string", "bytes", "bool", "int32"):
            told.type = getattr(_Field, f"TYPE_{kind.upper()}")
        else:
            told.type = _Field.TYPE_MESSAGE
            told.type_name = f".{kind}" if kind == _STRUCT else f".{_PACKAGE}.{kind}"
    return message


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="weighbridge/picker.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name],
        message_type=[_described(name, table) for name, table in TABLES.items()],
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in TABLES
    }


_BY_NAME = _classes()
ProcessingRequest: Any = _BY_NAME["ProcessingRequest"]
ProcessingResponse: Any = _BY_NAME["ProcessingResponse"]
HeaderValue: Any = _BY_NAME["HeaderValue"]
HeaderValueOption: Any = _BY_NAME["HeaderValueOption"]
HeaderMutation: Any = _BY_NAME["HeaderMutation"]
CommonResponse: Any = _BY_NAME["CommonResponse"]
HeadersResponse: Any = _BY_NAME["HeadersResponse"]
TrailersResponse: Any = _BY_NAME["TrailersResponse"]
ImmediateResponse: Any = _BY_NAME["ImmediateResponse"]
HttpStatus: Any = _BY_NAME["HttpStatus"]
HealthCheckRequest: Any = _BY_NAME["HealthCheckRequest"]
HealthCheckResponse: Any = _BY_NAME["HealthCheckResponse"]
