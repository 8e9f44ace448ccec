"""An answer as bytes and back, bit by bit: what the journal keeps.

    magic and version (4) | crc32 of all that follows (4) | length of the header (4) | header, JSON | arrays

The arrays are raw and little-endian, one after the other; the header has the dtype and shape of each. Token ids are
kept in 32 bits where they fit.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from teachers.types import Answer, Judgment, TopK, Usage

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"tut\x01"  # the last byte is the version
_PREFIX = struct.Struct("<4sII")
_TENSORS = ("token_logprobs", "ids", "logprobs", "log_tail", "valid")
_STORED = {"float32": "<f4", "float64": "<f8", "int64": "<i8", "int32": "<i4", "bool": "|b1"}
_INT32_MAX = 2**31 - 1


def encode(answer: Answer) -> bytes:
    """The answer without its `journal_key`, which is where it is kept.

    Raises TypeError for hidden states (a remote teacher does not give them) and for dtypes outside the table above:
    both are mistakes in a kind of teacher.
    """
    signal, arrays = _signal_to_parts(answer.signal)
    header = {
        "signal": signal,
        "usage": asdict(answer.usage),
        "model": answer.model_returned,
        "latency": answer.latency,
    }
    text = json.dumps(header).encode("ascii")  # escaped: half a surrogate pair from a server comes back as it was
    body = struct.pack("<I", len(text)) + text + b"".join(arrays)
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(payload: bytes, *, key: str | None = None) -> Answer:
    """What `encode` was given; tensors are on the CPU. key: becomes `journal_key`. Raises ValueError if damaged."""
    if len(payload) < _PREFIX.size or payload[:3] != MAGIC[:3]:
        raise ValueError("not an answer")
    magic, checksum, length = _PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise ValueError(f"written by a later version of this program (format {magic[3]})")
    if zlib.crc32(payload[8:]) != checksum:
        raise ValueError("its checksum is wrong")
    start = _PREFIX.size + length
    header = json.loads(payload[_PREFIX.size : start])
    signal = _signal_from_parts(header["signal"], memoryview(payload)[start:])
    return Answer(signal, Usage(**header["usage"]), header["model"], header["latency"], key)


def _signal_to_parts(signal: object) -> tuple[dict[str, Any], list[bytes]]:
    """(what the header says, the arrays)"""
    if isinstance(signal, Judgment):
        return {"kind": "judgment", **asdict(signal)}, []
    if not isinstance(signal, TopK):
        raise TypeError(f"{type(signal).__name__} cannot be kept in a journal")
    described, arrays = [], []
    for name in _TENSORS:
        tensor: Tensor = getattr(signal, name).detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _STORED:
            raise TypeError(f"{name} is {dtype}; a journal keeps {', '.join(_STORED)}")
        stored = _STORED[dtype]
        array = tensor.numpy()
        if dtype == "int64" and (array.size == 0 or (array.min() >= 0 and array.max() <= _INT32_MAX)):
            stored = "<i4"
        described.append({"name": name, "dtype": dtype, "stored": stored, "shape": list(tensor.shape)})
        arrays.append(array.astype(stored).tobytes())
    return {"kind": "top_k", "tensors": described}, arrays


def _signal_from_parts(header: Mapping[str, Any], rest: memoryview) -> Judgment | TopK:
    if header["kind"] == "judgment":
        return Judgment(header["score"], header["feedback"], header["rewrite"])
    import numpy as np
    import torch

    tensors: dict[str, Tensor] = {}
    for part in header["tensors"]:
        stored = np.dtype(part["stored"])
        size = int(np.prod(part["shape"], dtype=np.int64)) * stored.itemsize
        array = np.frombuffer(rest[:size], stored).reshape(part["shape"])
        tensors[part["name"]] = torch.from_numpy(array.astype(part["dtype"]))  # a copy, in this machine's byte order
        rest = rest[size:]
    return TopK(**tensors)
