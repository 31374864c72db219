"""A request for decisions as generations: the input is computed once, and each question looks at what follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from weighbridge.cost.usage import Usage
from weighbridge.engine.api import Generation
from weighbridge.engine.request import SamplingParams
from weighbridge.errors import NeverFits
from weighbridge.server.decisions.answers import answer_to, distinct_tokens
from weighbridge.server.decisions.labels import LabelTree, Tokens, TooManyNodes, label_tree, shares_of
from weighbridge.server.engine.formats import Gathered, WholeFormat
from weighbridge.wire.errors import ApiError
from weighbridge.wire.protocols.chat import ChatRequest
from weighbridge.wire.protocols.decisions import (
    DecisionRequest,
    Predicate,
    Question,
    check_questions,
    instructions_of,
    labels_of,
)

_encode = msgspec.json.encode

#: Tokens of all prompts of one request together: they are lists in memory until they are computed.
MOST_TOKENS = 1 << 22
#: Looks of one request: labels of many tokens take several each.
MOST_LOOKS = 2_048
_NOTHING = SamplingParams(max_tokens=0, temperature=0.0)
#: A thought would stand where the label is looked for.
_NO_THOUGHTS = {"enable_thinking": False}


@dataclass(frozen=True, slots=True)
class ModelWords:
    """What is needed of a model's tokenizer and context. `opens_thought`: whether a prompt ends inside of one."""

    name: str
    longest: int
    chat: Callable[[ChatRequest], list[int]]
    encode: Callable[[str, bool], list[int]]
    opens_thought: Callable[[Sequence[int]], bool]


def decision_generations(body: DecisionRequest, words: ModelWords) -> tuple[list[Generation], DecisionFormat]:
    """A generation for each look at the model, and the format of the answer. Raises ApiError naming the question."""
    check_questions(body.questions)
    messages = body.messages()
    trees: list[LabelTree] = []
    generations: list[Generation] = []
    held = 0  # tokens of all prompts
    for index, question in enumerate(body.questions):
        prompt = words.chat(_chat(messages, question, index, body.chat_template_kwargs))
        if words.opens_thought(prompt):
            message = (
                f"model: {words.name!r} thinks before it answers, also where it is asked not to; ask another"
            )
            raise ApiError(400, message, param="model")
        tree = _tree(question, index, words, MOST_LOOKS - len(generations))
        held += sum(len(prompt) + len(node) for node in tree.nodes)
        if held > MOST_TOKENS:
            raise _too_much()
        generations += _looks(prompt, tree, index, words.longest)
        trees.append(tree)
    return generations, DecisionFormat(words.name, body.questions, trees, [one.prompt for one in generations])


def _chat(
    messages: Sequence[Mapping[str, Any]], question: Question, index: int, variables: dict[str, Any] | None
) -> ChatRequest:
    """The chat whose answer would be the label. The question stands behind the input, so that all share its prefix;
    a last message of the user's is gone on with, because templates want turns to change."""
    asked = _asked(question, index)
    said = [dict(one) for one in messages]
    if said[-1]["role"] != "user":
        said.append({"role": "user", "content": asked})
    elif isinstance(said[-1]["content"], list):
        said[-1]["content"] = [*said[-1]["content"], {"type": "text", "text": f"\n\n{asked}"}]
    else:
        said[-1]["content"] = f"{said[-1]['content']}\n\n{asked}"
    return ChatRequest(messages=said, chat_template_kwargs={**_NO_THOUGHTS, **(variables or {})})


def _asked(question: Question, index: int) -> str:
    what = instructions_of(question, index)
    if isinstance(question, Predicate):
        return f"{what}\nIs this true? Answer yes or no, and nothing else."
    lines = [f"- {label}: {about}" if about else f"- {label}" for label, about in labels_of(question)]
    return "\n".join([what, "Answer with one of these, and nothing else:", *lines])


def _too_much() -> ApiError:
    return ApiError(400, "questions: this is more than one request may ask; send several", param="questions")


def _tree(question: Question, index: int, words: ModelWords, most: int) -> LabelTree:
    """`Yes` is as good as `yes`; a label of the client's is taken to the letter. `most`: looks that are left."""
    forms: list[list[Tokens]] = []
    for label, _ in labels_of(question):
        spellings = (label, label.capitalize()) if isinstance(question, Predicate) else (label,)
        forms.append([tuple(words.encode(one, False)) for one in spellings])
    try:
        return label_tree(forms, most)
    except TooManyNodes:
        raise _too_much() from None
    except ValueError as error:
        message = f"questions[{index}]: {error} to this model; write them differently"
        raise ApiError(400, message, param="questions") from None


def _looks(prompt: list[int], tree: LabelTree, index: int, longest: int) -> list[Generation]:
    found = []
    for node, children in tree.nodes.items():
        tokens = [*prompt, *node]
        if len(tokens) > longest:
            message = f"has {len(tokens)} tokens with its input, but this model's context is {longest}"
            place = f"questions[{index}]"
            raise ApiError(400, f"{place}: {message}; shorten one", code=NeverFits.code, param="questions")
        found.append(Generation(tokens, replace(_NOTHING, chances_of=children)))
    return found


class DecisionFormat(WholeFormat):
    """The answers to all questions, out of what each look at the model found.

    `prompts`: of each look, to count tokens that several share once.
    """

    def __init__(
        self,
        model: str,
        questions: Sequence[Question],
        trees: Sequence[LabelTree],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(model)
        self._questions = questions
        self._trees = trees
        self._distinct = distinct_tokens(prompts)

    def _choice(self, index: int, gathered: Gathered) -> Any:
        return gathered.chances

    def whole(self, choices: Sequence[Any], usage: Usage) -> bytes:
        looks = iter(choices)
        answers = []
        for question, tree in zip(self._questions, self._trees, strict=True):
            found = {node: next(looks) for node in tree.nodes}
            answers.append(answer_to(question, shares_of(tree.probabilities(found))))
        return _encode({"answers": answers, "model": self.model, "usage": self._usage(usage)})

    def _usage(self, usage: Usage) -> dict[str, Any]:
        """Tokens that the prompts have in common are one input; of it, what was not computed was cached."""
        computed = usage.prompt_tokens - usage.cached_tokens
        return {
            "input_tokens": self._distinct,
            "input_tokens_details": {
                "cached_tokens": max(self._distinct - computed, 0),
                "cache_write_tokens": min(usage.written_tokens, self._distinct),
            },
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._distinct,
        }
