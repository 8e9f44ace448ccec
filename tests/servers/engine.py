"""A small server on loopback that writes as vLLM does, with a local model and its adapters, and goes wrong on demand.

For faults that cannot be had from the real one when a test wants them. Its tokens and log-probabilities are true.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

Json = dict[str, Any]
# cut: the connection breaks. told: an error in the stream. early: the stream ends, and says it is done. forget: it is
# cut, and the server has lost what it was told of weights, as one that was started again.
Fault = Literal["cut", "told", "early", "forget"]
BASE = "base"


@dataclass(eq=False)
class EngineServer:
    """`with EngineServer(folder) as server:` serves the model in `folder` at `server.url`.

    fault: (number of the request, tokens written in it) -> what happens instead of the next token. turn: called before
    each token; a test may hold it there, and cut it off with False. asked: the bodies of completions, in order. told:
    (path, body) of the rest.
    """

    folder: str
    fault: Callable[[int, int], Fault | None] = lambda request, written: None
    turn: Callable[[], bool] = lambda: True
    raw: bool = False  # log-probabilities at temperature 1, whatever the temperature
    wrong: float = 0.0  # that its logits are off by, for some entries
    asked: list[Json] = field(default_factory=list)
    told: list[tuple[str, Json]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    version: str = "default"
    _loaded: dict[str, PreTrainedModel | PeftModel] = field(default_factory=dict)
    _alone: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> EngineServer:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def paths(self) -> list[str]:
        return [path for path, _ in self.told]

    def forget(self) -> None:
        self.adapters, self.version = {}, "default"

    # ---- what it answers ----

    def models(self) -> Json:
        entries: list[Json] = [{"id": BASE, "parent": None}]
        return {"data": [*entries, *({"id": name, "parent": BASE} for name in self.adapters)]}

    def command(self, path: str, body: Json) -> tuple[int, Json]:
        self.told.append((path, body))
        match path:
            case "/v1/load_lora_adapter":
                self.adapters[body["lora_name"]] = body["lora_path"]
            case "/v1/unload_lora_adapter":
                if self.adapters.pop(body["lora_name"], None) is None:
                    return 404, {"error": {"message": "cannot be found"}}
            case "/collective_rpc":
                self.folder = body["kwargs"]["weights_path"]
            case "/update_weight_version":
                self.version = body["new_version"]
            case _:
                return 404, {"detail": "Not Found"}
        return 200, {}

    def model(self, name: str) -> PreTrainedModel | PeftModel | None:
        place = self.folder if name == BASE else self.adapters.get(name)
        if place is None:
            return None
        with self._alone:
            if place not in self._loaded:
                base = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
                self._loaded[place] = base if name == BASE else PeftModel.from_pretrained(base, place)
            return self._loaded[place]

    @torch.inference_mode()
    def next_token(self, model: Any, ids: list[int], body: Json, draws: torch.Generator) -> tuple[int, float]:
        with self._alone:
            logits = model(torch.tensor([ids])).logits[0, -1].float()
        logits[::2] += self.wrong
        scaled = (logits / body["temperature"]).log_softmax(-1)
        token = int(torch.multinomial(scaled.exp(), 1, generator=draws))
        return token, float((logits.log_softmax(-1) if self.raw else scaled)[token])


def _handler(server: EngineServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._answer(200, {})
            elif self.path == "/v1/models":
                self._answer(200, server.models())
            elif self.path == "/weight_info":
                self._answer(200, {"weight_version": server.version})
            else:
                self._answer(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/completions":
                self._complete(body)
            else:
                self._answer(*server.command(self.path, body))

        def _complete(self, body: Json) -> None:
            model = server.model(body["model"])
            if model is None:
                self._answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
                return
            with server._alone:
                number = len(server.asked)
                server.asked.append(body)
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            ids, draws = list(body["prompt"]), torch.Generator().manual_seed(body["seed"])
            for written in range(body["max_tokens"]):
                if not server.turn():
                    break
                match server.fault(number, written):
                    case "cut":
                        break
                    case "forget":
                        server.forget()
                        break
                    case "told":
                        self._line({"error": {"message": "EngineCore encountered an issue"}})
                        break
                    case "early":
                        self._line({"choices": [{"token_ids": [], "finish_reason": "abort"}]})
                        self.wfile.write(b"data: [DONE]\n\n")
                        break
                token, logprob = server.next_token(model, ids, body, draws)
                ids.append(token)
                ends = token in body["stop_token_ids"] or written + 1 == body["max_tokens"]
                choice: Json = {"token_ids": [token], "logprobs": {"token_logprobs": [logprob]}}
                try:
                    self._line({"choices": [choice | {"finish_reason": "stop" if ends else None}]})
                except OSError:  # nobody listens any more
                    break
                if ends:
                    self.wfile.write(b"data: [DONE]\n\n")
                    break
            self.close_connection = True

        def _line(self, value: Json) -> None:
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
            self.wfile.flush()

        def _answer(self, status: int, value: Json) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler
