"""A predictor that asks a model which outcome is likeliest, by probabilities: one prefill, and nothing generated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from weighbridge.errors import BadInput
from weighbridge.flow.bets.predict import GuessedCall, Prediction
from weighbridge.flow.llm.client import ChatClient, ChatEndpoint
from weighbridge.secret import Secret

#: Seconds that a prediction may take, and bytes of an answer.
PATIENCE, LARGEST = 10.0, 1 << 20
#: Labels that are predicted at most, and least label mass: below it the model would have said something else.
MOST, LEAST_MASS = 3, 0.05


class DecisionPredictor:
    """Predicts one of `outcomes` with `/v1/decisions`. `asks` makes the input out of the call's arguments.

    Each prediction's kind is its rank and the tenth in which its probability lies, so that the gate learns what a
    probability of this model is worth at this site. No server, or an answer of no use, means no prediction.
    """

    def __init__(
        self,
        url: str,
        instructions: str,
        outcomes: Mapping[str, Any],
        asks: Callable[..., str] = lambda *args, **kwargs: "\n".join(map(str, (*args, *kwargs.values()))),
        *,
        model: str | None = None,
        api_key: Secret | None = None,
        name: str = "decision",
    ) -> None:
        """`outcomes`: label to value. Raises BadInput for fewer than two, and for a URL that is none."""
        if len(outcomes) < 2:
            raise BadInput("a decision needs two outcomes at least")
        self.name = name
        self._endpoint = ChatEndpoint(url, api_key)
        self._outcomes = dict(outcomes)
        self._asks = asks
        choices = [{"value": label} for label in outcomes]
        question = {"type": "choice", "name": name, "instructions": instructions, "choices": choices}
        self._body = {"questions": [question], **({"model": model} if model else {})}

    async def predict(self, call: GuessedCall) -> Sequence[Prediction]:
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._answer(self._asks(*call.args, **call.kwargs))
            if answer["label_mass"] < LEAST_MASS:
                return ()
            ranked = sorted(answer["probabilities"], key=lambda one: -one["probability"])[:MOST]
            return [
                Prediction(
                    self._outcomes[one["value"]], (self.name, rank, min(int(10 * one["probability"]), 9))
                )
                for rank, one in enumerate(ranked)
            ]
        except (OSError, ValueError, LookupError, TypeError, RecursionError, msgspec.MsgspecError):
            return ()  # TimeoutError is an OSError

    def learn(self, call: GuessedCall, outcome: Any) -> None:
        """The model does not learn; what its probabilities are worth is learned all the same."""

    async def _answer(self, text: str) -> dict[str, Any]:
        client = ChatClient()
        try:
            body = msgspec.json.encode({**self._body, "input": text})
            headers = {"content-type": "application/json"}
            response = await client.send(self._endpoint, "POST", "/v1/decisions", headers, body)
            await response.begin(None)
            told = msgspec.json.decode(await response.whole(LARGEST))
            found: dict[str, Any] = told["answers"][0]
            return found
        finally:
            await client.close()
