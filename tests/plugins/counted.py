"""`tutelage`, and at its end what the kernel counted in its network namespace: every packet that had nowhere to go, and
those on the loopback. It counts for all threads and programs of the run, whatever they make of the error.

    python tests/plugins/counted.py FILE run RECIPE        FILE: where it is written, as JSON
"""

import atexit
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def counted():
    """no route, no route (version 6): packets; loopback: packets sent. routes: lines of the table."""
    names, numbers = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines()[:2])
    version_6 = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    devices = dict(line.split(":") for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    return {
        "no route": int(numbers[names.index("OutNoRoutes")]),
        "no route, version 6": int(version_6["Ip6OutNoRoutes"]),
        "loopback": int(devices["    lo"].split()[9]),
        "devices": [name.strip() for name in devices],
        "routes": Path("/proc/net/route").read_text().splitlines()[1:],
        "namespace": os.readlink("/proc/self/ns/net"),
    }


def write(path, process):
    if os.getpid() == process:
        path.write_text(json.dumps(counted()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from pipeline.cli import main

    atexit.register(write, Path(sys.argv.pop(1)).absolute(), os.getpid())
    main()
