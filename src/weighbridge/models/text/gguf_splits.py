r"""How vocabularies split text into words before they merge, by the name that a GGUF file has for the rule.

The patterns are those of the models' own tokenizer.json; llama.cpp's list says which name stands for which. Patterns of
a rule are applied one after the other, each within the pieces that the one before it left.
"""

from __future__ import annotations

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD, _CONTRACTED = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_AFTER_WORDS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+|{_BEFORE_WORD}{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}{_AFTER_WORDS}"
)
_CASED = rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_CONTRACTED}|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_CONTRACTED}"
_GPT4O = rf"{_CASED}|\p{{N}}{{1,3}}{_AFTER_WORDS}"
_SEED_CODER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Letters that have cases, as DeepSeek's first vocabulary lists them.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ"
    "ῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+".replace(r"\u3000", "\u3000"),
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DIGIT = r"\p{N}"


@dataclass(frozen=True, slots=True)
class SplitRule:
    """One way of splitting, and what the vocabularies that use it have in common."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a word that is a token needs no merging
    begins: bool = False  # each text starts with BOS where the file does not say
    composed: bool = False  # learned on text in Unicode's composed form


#: What files mean that name no rule, or the word "default".
DEFAULT = SplitRule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

_RULES: tuple[tuple[str, SplitRule], ...] = (
    ("default", DEFAULT),
    (
        "gpt-2 phi-2 mpt olmo jais trillion gigachat a.x-4.0 mellum exaone4 granite-docling jina-es jina-de",
        SplitRule((_GPT2,)),
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", SplitRule((_DIGIT, _GPT2))),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        SplitRule((_LLAMA3,), whole_words=True, begins=True),
    ),
    ("smaug-bpe dbrx glm4 chatglm-bpe", SplitRule((_LLAMA3,))),
    ("qwen2 deepseek-r1-qwen megrez kormo f2llmv2", SplitRule((_QWEN2,), composed=True)),
    ("stablelm2 hunyuan solar-open grok-2", SplitRule((_QWEN2,))),
    ("qwen35", SplitRule((_QWEN35,), composed=True)),
    ("tekken", SplitRule((_TEKKEN,), whole_words=True, begins=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", SplitRule((_GPT4O,))),
    ("deepseek-llm", SplitRule(_DEEPSEEK)),
    ("deepseek-coder", SplitRule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))),
    (
        "deepseek-v3 hunyuan-dense joyai-llm",
        SplitRule((r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    ),
    ("falcon", SplitRule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    ("poro-chat bloom gpt3-finnish", SplitRule((_BLOOM,))),
    ("viking", SplitRule((_BLOOM, _DIGIT))),
    ("bailingmoe bailingmoe2 llada-moe", SplitRule((_BAILING,))),
    ("seed-coder", SplitRule((_SEED_CODER,))),
    ("minicpm5", SplitRule((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")))),
)
RULES = {name: rule for names, rule in _RULES for name in names.split()}
