"""Speculative pipelines: plain async Python in which independent steps run side by side, likely ones early.

@step(effect="read")
async def profile(user: str) -> Profile: ...

@flow
async def support(question: str) -> str:
    user = profile(question)                 # has started
    intent = await guess(classify(question)) # goes on with the likely answer
    return await reply(question, intent, await user)
"""

from weighbridge.flow.bets.guess import guess
from weighbridge.flow.bets.predict import NOTHING, GuessedCall, History, Prediction, Predictor, Several
from weighbridge.flow.bets.prefetch import prefetch
from weighbridge.flow.budget import Budget, BudgetExceeded
from weighbridge.flow.combine.best import best
from weighbridge.flow.combine.first import first
from weighbridge.flow.flow import Flow, flow
from weighbridge.flow.journal.run_journal import InDoubt, idempotency_key
from weighbridge.flow.llm.decide import DecisionPredictor
from weighbridge.flow.llm.mcp import mcp_tools
from weighbridge.flow.llm.model import Llm, llm
from weighbridge.flow.llm.plan import PlanError
from weighbridge.flow.llm.reply import Reply, ToolCall
from weighbridge.flow.recorded import recorded
from weighbridge.flow.runtime import Diverged, FlowTimeout, Promise, StepTimeout, attempt, charge
from weighbridge.flow.step import Effect, In, NotDone, Step, step

__all__ = [
    "NOTHING",
    "Budget",
    "BudgetExceeded",
    "DecisionPredictor",
    "Diverged",
    "Effect",
    "Flow",
    "FlowTimeout",
    "GuessedCall",
    "History",
    "In",
    "InDoubt",
    "Llm",
    "NotDone",
    "PlanError",
    "Prediction",
    "Predictor",
    "Promise",
    "Reply",
    "Several",
    "Step",
    "StepTimeout",
    "ToolCall",
    "attempt",
    "best",
    "charge",
    "first",
    "flow",
    "guess",
    "idempotency_key",
    "llm",
    "mcp_tools",
    "prefetch",
    "recorded",
    "step",
]
