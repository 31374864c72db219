"""LlamaIndex: `OpenAILike`."""

from typing import Any, Literal

from contract import LONG, NOBODY, QUESTION, SHORT, SYSTEM, WRONG_KEY, Place, check, drive, refused
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from parcel import Parcel

HI = [ChatMessage(role="system", content=SYSTEM), ChatMessage(role="user", content=QUESTION)]


def weigh(size: Literal["small", "large"]) -> str:
    """Weigh a parcel."""
    return f"{size}: 9 kg"


WEIGH = FunctionTool.from_defaults(weigh)


def model_of(place: Place, **more: Any) -> OpenAILike:
    asked = {"max_tokens": SHORT, "max_retries": 0, "timeout": 60.0, "context_window": 8192, **more}
    return OpenAILike(
        model=place.model,
        api_base=place.v1,
        api_key=place.key,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        **asked,
    )


def chat(place: Place) -> None:
    answer = model_of(place).chat(HI)
    check(answer.message.content and answer.raw.usage.completion_tokens == SHORT, answer)


def stream(place: Place) -> None:
    chunks = list(model_of(place).stream_chat(HI))
    check("".join(one.delta or "" for one in chunks) == chunks[-1].message.content != "", chunks)


def tools(place: Place) -> None:
    model = model_of(place, max_tokens=200)
    answer = model.chat_with_tools([WEIGH], chat_history=HI, tool_required=True)
    [call] = model.get_tool_calls_from_response(answer)
    result = WEIGH(**call.tool_kwargs)
    told = ChatMessage(role="tool", content=str(result), additional_kwargs={"tool_call_id": call.tool_id})
    after = model_of(place).chat_with_tools([WEIGH], chat_history=[*HI, answer.message, told])
    check(after.raw.usage.completion_tokens > 0, after)


def structured(place: Place) -> None:
    answer = model_of(place, max_tokens=200).as_structured_llm(Parcel).chat(HI)
    check(isinstance(answer.raw, Parcel), answer)


def cancelled(place: Place) -> None:
    chunks = model_of(place, max_tokens=LONG).stream_chat(HI)
    for chunk in chunks:
        if chunk.delta:
            break
    chunks.close()


if __name__ == "__main__":
    drive(
        ("llama-index-core", "llama-index-llms-openai-like", "openai"),
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "structured": structured,
            "400": lambda place: refused(
                400, lambda: model_of(place, additional_kwargs={"top_p": 7}).chat(HI)
            ),
            "401": lambda place: refused(401, lambda: model_of(place.with_key(WRONG_KEY)).chat(HI)),
            "404": lambda place: refused(404, lambda: model_of(place.with_model(NOBODY)).chat(HI)),
            "429": lambda place: refused(429, lambda: model_of(place.crowded).chat(HI), tries=2),
            "cancelled": cancelled,
        },
        {"list": "it does not ask what there is"},
    )
