"""A small real server on loopback that scores texts with a local model, in the formats of those that people run.

Its scores are true: a forward of the model. `twist` changes an answer before it leaves, to show what is noticed.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

# vllm_lean: with /inference/v1/generate. texts: completions that take and give texts alone.
ServerKind = Literal["vllm", "vllm_lean", "sglang", "completions", "texts"]
KINDS: tuple[ServerKind, ...] = ("vllm", "vllm_lean", "sglang", "completions", "texts")
MODEL = "tiny"
Json = dict[str, Any]


class Refused(Exception):
    """What the server answers with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class ScoringServer:
    """`with ScoringServer(...) as server:` serves at `server.url`; `asked` has every path and body that came."""

    kind: ServerKind
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    context: int = 128
    most_logprobs: int = 20
    follows_temperature: bool = False
    twist: Callable[[str, Json], Json] = lambda path, answer: answer
    key: str | None = None
    asked: list[tuple[str, Json]] = field(default_factory=list)
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> ScoringServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = self.root + "/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def posts(self, path: str) -> list[Json]:
        return [body for where, body in self.asked if where == path and body]

    # ---- what it answers ----

    def get(self, path: str) -> Json:
        if path == "/v1/models":
            return {"data": [{"id": MODEL, "max_model_len": self.context}]}
        if path == "/version" and self.kind.startswith("vllm"):
            return {"version": "0.32.0"}
        if path == "/get_model_info" and self.kind == "sglang":
            return {"model_path": "org/tiny"}
        raise Refused(404, "Not Found")

    def post(self, path: str, body: Json) -> Json:
        if path == "/generate" and self.kind == "sglang":
            return self._sglang(body)
        if path == "/inference/v1/generate" and self.kind.startswith("vllm"):
            return self._lean(body)
        if path == "/tokenize" and self.kind == "vllm":
            return {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/v1/completions" and self.kind != "sglang":
            if body["model"] != MODEL:
                raise Refused(404, f"The model `{body['model']}` does not exist.")
            return self._completions(body) if body.get("echo") else self._vllm(body)
        raise Refused(404, "Not Found")

    def table(self, ids: list[int], temperature: float = 1.0) -> Tensor:
        """(P, V): row i is log p of the token at i + 1."""
        if len(ids) + 1 > self.context:
            raise Refused(400, f"This model's maximum context length is {self.context} tokens")
        with self._alone, torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        return (logits / (temperature if self.follows_temperature else 1.0)).log_softmax(-1)

    def _most(self, k: int) -> int:
        if k > self.most_logprobs:
            raise Refused(
                400, f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.most_logprobs}"
            )
        return k

    def _vllm(self, body: Json) -> Json:
        if "prompt_logprobs" not in body:
            raise Refused(400, "echo is not supported")
        ids, k = body["prompt"], self._most(body["prompt_logprobs"])
        table = self.table(ids, body["temperature"])
        rows: list[Json | None] = [None]
        for row, token in zip(table, ids[1:], strict=False):
            shown = dict.fromkeys([token, *row.topk(k).indices.tolist()])
            rows.append({str(entry): {"logprob": float(row[entry]), "rank": 1} for entry in shown})
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"model": MODEL, "choices": [{"text": "x", "prompt_logprobs": rows}], "usage": usage}

    def _lean(self, body: Json) -> Json:
        if self.kind != "vllm_lean":
            raise Refused(403, "Scale-out endpoints are disabled.")
        ids, params = body["token_ids"], body["sampling_params"]
        start, named = params["prompt_logprob_start"], params["prompt_logprob_token_ids"]
        rows = self.table(ids, params["temperature"])[start : len(ids) - 1]
        assert len(rows) == len(named)
        buffer = io.BytesIO()
        np.save(buffer, rows.gather(1, torch.tensor(named)).numpy())
        scores = base64.b64encode(buffer.getvalue()).decode()
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"model": MODEL, "prompt_token_id_logprobs": scores, "prompt_token_ids": ids, "usage": usage}

    def _sglang(self, body: Json) -> Json:
        ids, k, start = body["input_ids"], body["top_logprobs_num"], body["logprob_start_len"]
        table = self.table(ids, body["sampling_params"]["temperature"])
        tokens: list[list[Any]] = [[None, ids[start], None]]
        tops: list[list[list[Any]] | None] = [None]
        for place in range(start + 1, len(ids)):
            row = table[place - 1]
            tokens.append([float(row[ids[place]]), ids[place], None])
            tops.append([[float(row[entry]), entry, None] for entry in row.topk(k).indices.tolist()])
        meta: Json = {"prompt_tokens": len(ids), "completion_tokens": 0, "input_token_logprobs": tokens}
        return {"text": "", "meta_info": meta | ({"input_top_logprobs": tops} if k else {})}

    def _completions(self, body: Json) -> Json:
        if self.kind == "texts" and ("return_tokens_as_token_ids" in body or not isinstance(body["prompt"], str)):
            raise Refused(422, "a text, and no parameter that OpenAI does not know")
        prompt, k = body["prompt"], self._most(body["logprobs"])
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) if isinstance(prompt, str) else prompt
        table = self.table(ids, body["temperature"])
        written = int(table[-1].argmax())

        def shown(token: int) -> str:
            if body.get("return_tokens_as_token_ids"):
                return f"token_id:{token}"
            return str(self.tokenizer.decode([token]))

        said: Json = {"tokens": [shown(token) for token in (*ids, written)], "token_logprobs": [None]}
        said["top_logprobs"] = [None] if k else None
        for row, token in zip(table, (*ids[1:], written), strict=True):
            said["token_logprobs"].append(float(row[token]))
            if k:
                entries = dict.fromkeys([token, *row.topk(k).indices.tolist()])
                said["top_logprobs"].append({shown(entry): float(row[entry]) for entry in entries})
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"model": MODEL, "choices": [{"text": "", "logprobs": said}], "usage": usage}


def _handler(server: ScoringServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            self._answer({}, lambda: server.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._answer(body, lambda: server.twist(self.path, server.post(self.path, body)))

        def _answer(self, body: Json, answer: Callable[[], Json]) -> None:
            server.asked.append((self.path, body))
            try:
                if server.key and self.headers.get("authorization") != f"Bearer {server.key}":
                    raise Refused(401, f"wrong key: {self.headers.get('authorization')}")
                status, said = 200, answer()
            except Refused as refusal:
                status, said = refusal.status, {"error": {"message": str(refusal)}}
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    return Handler
