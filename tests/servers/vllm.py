"""A real vLLM server on loopback, on the CPU, in an environment of its own (`.ci/vllm` makes it)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PYTHON = "TUTELAGE_VLLM_PYTHON"  # the variable that names its python
_READY_SECONDS = 800
_INTERPRETED = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "PYTHONPATH": str(Path(__file__).with_name("triton_interpreter")),
}


def vllm_python() -> str:
    """The python of the vLLM environment. Skips the test where there is none, but never in CI."""
    named = os.environ.get(PYTHON, "")
    if named:
        assert Path(named).exists(), f"{PYTHON} names {named}, which is not there"
        return named
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{PYTHON} is not set: CI tests against a real vLLM server, which .ci/vllm installs")
    pytest.skip(f"no vLLM: run .ci/vllm and set {PYTHON} to what it prints")


def beside_vllm() -> dict[str, str]:
    """An environment in which this python finds vLLM and what comes with it, and of the rest what it has itself."""
    python = vllm_python()
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    there = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    path = os.pathsep.join([str(Path(__file__).parents[2]), there])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def vllm_server(python: str, model: str, log: Path, *flags: str, interpreted: bool = False) -> Iterator[str]:
    """Serves the model in the folder `model` under the name "tiny" and yields the base URL, ending in /v1.

    interpreted: with its second model runner, whose Triton kernels are interpreted.
    """
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-num-seqs", "8", *flags]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings, **(_INTERPRETED if interpreted else {})},
            cwd=log.parent,
            start_new_session=True,  # its workers are ended with it
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.poll() is None:  # else what it died of would not be told
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start:\n{log.read_text()[-4000:]}")
