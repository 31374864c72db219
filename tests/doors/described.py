"""What /openapi.json says of answers, held against real ones."""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_HERE = "urn:interface"
_HOLE = re.compile(r"{\w+}")


class Described:
    """One door's document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(_HERE, resource)
        paths = sorted(document["paths"], key=lambda path: path.count("{"))
        self._paths = [(re.compile(_HOLE.sub("[^?]+", path)), path) for path in paths]
        self._validators: dict[str, Draft202012Validator] = {}

    def takes(self, method: str, path: str, body: Any) -> bool:
        """Whether the document describes requests to this endpoint; fails where it does not take this one."""
        operation = self._operation(method, path)
        content = (operation or {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            return False
        self._check(content["schema"]["$ref"], body, f"{method} {path} is asked")
        return True

    def holds(self, method: str, path: str, status: int, body: Any) -> bool:
        """Whether the document describes this answer; fails where the answer is another."""
        operation = self._operation(method, path)
        if operation is None:
            return False
        told = operation["responses"]
        answer = told.get(str(status), told["default"])["content"].get("application/json")
        if answer is None:
            return False
        self._check(answer["schema"]["$ref"], body, f"{method} {path} answers {status}")
        return True

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        found = next((one for pattern, one in self._paths if pattern.fullmatch(path.partition("?")[0])), None)
        told: dict[str, Any] | None = self._document["paths"].get(found, {}).get(method.lower())
        return told

    def _check(self, reference: str, value: Any, what: str) -> None:
        validator = self._validators.get(reference)
        if validator is None:
            made = Draft202012Validator({"$ref": _HERE + reference}, registry=self._registry)
            validator = self._validators[reference] = made
        wrong = next(validator.iter_errors(value), None)
        assert wrong is None, f"{what}: {wrong}"
