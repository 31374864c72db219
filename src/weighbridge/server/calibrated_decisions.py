"""Decisions that are calibrated on a tenant's own labels: the protocol of one server, and its endpoints."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from weighbridge.errors import said
from weighbridge.server.decisions.answers import recalibrated
from weighbridge.server.decisions.calibration import Calibration, calibrate
from weighbridge.server.decisions.requests import CalibrationRequest
from weighbridge.server.decisions.store import CalibrationsKept, KeptCalibration
from weighbridge.server.endpoint import Endpoint, HttpService, json_response
from weighbridge.wire.ask import Ask
from weighbridge.wire.body import LONG_BODY, apart, decode, read_body
from weighbridge.wire.errors import ApiError
from weighbridge.wire.headers import headers_of
from weighbridge.wire.journey import WholeAnswer
from weighbridge.wire.protocols.decisions import (
    PATH,
    DecisionProtocol,
    DecisionRequest,
)
from weighbridge.wire.protocols.openai import WholeEncoder

CALIBRATIONS = PATH + "/calibrations"
#: What reading decisions meets in what are none: who answers may be anybody's server.
_NO_DECISIONS = (
    *(msgspec.MsgspecError, LookupError, ValueError, TypeError, ArithmeticError),
    *(AttributeError, RecursionError),
)


class CalibratedDecisions(DecisionProtocol):
    """Answers to questions of a name for which there is a calibration are told as it says."""

    def __init__(self, service: HttpService, store: CalibrationsKept) -> None:
        self._service = service
        self._store = store

    async def recall(self, ask: Ask, owner: str | None) -> None:
        request: DecisionRequest = ask.own
        names = [one.name for one in request.questions if one.name is not None]
        ask.own = (request, await asyncio.to_thread(self._store.find, ask.tenant, ask.model, names))

    def encoder(self, ask: Ask) -> WholeEncoder:
        request, found = ask.own
        return CalibratedEncoder(request, found) if found else WholeEncoder()

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint("POST", CALIBRATIONS, self.calibrate),
            Endpoint("GET", CALIBRATIONS, self.listed),
            Endpoint("DELETE", CALIBRATIONS + "/{name}", self.remove),
        ]

    async def calibrate(self, request: Request) -> Response:
        """Make a line through a tenant's examples, and say what it is worth."""
        body = await read_body(request.receive, headers_of(request.headers.raw), self._service.max_body)
        asked = await apart(len(body), decode, body, CalibrationRequest)
        if asked.model:
            self._service.model(asked.model)
        try:
            size = LONG_BODY if len(asked.examples) > 1_000 else 0
            made = await apart(size, _calibrated, asked)
        except ValueError as error:
            raise ApiError(400, f"examples: {error}", param="examples") from None
        kept = await asyncio.to_thread(self._store.put, _tenant(request), asked.model or "", asked.name, made)
        return json_response(_shown(kept))

    async def listed(self, request: Request) -> Response:
        kept = await asyncio.to_thread(self._store.of, _tenant(request))
        return json_response({"object": "list", "data": [_shown(one) for one in kept]})

    async def remove(self, request: Request) -> Response:
        name, model = request.path_params["name"], request.query_params.get("model", "")
        if not await asyncio.to_thread(self._store.remove, _tenant(request), model, name):
            message = (
                f"there is no calibration {name!r} for the model {model!r}; GET {CALIBRATIONS} lists them"
            )
            raise ApiError(404, message, code="not_found", param="name")
        return json_response({"id": name, "object": "decision.calibration", "deleted": True})


class CalibratedEncoder(WholeEncoder):
    """Tells probabilities as a tenant's calibrations have them, and beside each answer what these are worth."""

    def __init__(self, request: DecisionRequest, found: dict[str, Calibration]) -> None:
        self._request = request
        self._found = found

    def whole(self, answer: WholeAnswer) -> bytes:
        if answer.status != 200:
            return answer.body
        try:
            told: dict[str, Any] = msgspec.json.decode(answer.body)
            told["answers"] = [
                recalibrated(question, one, self._found.get(question.name or ""))
                for question, one in zip(self._request.questions, told["answers"], strict=True)
            ]
            return msgspec.json.encode(told)
        except _NO_DECISIONS as error:
            raise ApiError(
                502, f"the server behind sent no decisions: {said(error)}", kind="server_error"
            ) from error


def _calibrated(asked: CalibrationRequest) -> Calibration:
    examples = asked.examples
    return calibrate([one.probability for one in examples], [one.outcome for one in examples])


def _shown(kept: KeptCalibration) -> dict[str, Any]:
    about = {"id": kept.name, "object": "decision.calibration", "name": kept.name, "model": kept.model}
    return {**about, "created_at": int(kept.made), **kept.calibration.as_dict()}


def _tenant(request: Request) -> str:
    """Whose calibrations they are: where nobody need say who calls, those of all."""
    return request.state.tenant or "default"
