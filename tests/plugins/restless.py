"""A checker that reaches out of the machine and takes no notice of what comes of it, as some telemetry does."""

import socket
import subprocess
import sys

SAYS = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"


def judge(completion, reference, prompt):
    for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.connect_ex((address, 443))
    subprocess.run([sys.executable, "-c", SAYS], stderr=subprocess.DEVNULL, check=False)
    return 0.5
