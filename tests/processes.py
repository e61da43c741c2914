"""Worker processes for tests: started together on loopback, each with a deadline, and ended by id; and what they are compared with."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tfpar.workers import launcher

TESTS = Path(__file__).parent
# What `tfpar train DATA` is told where several workers must end with the bits of one process: the fixture `alone`.
RUN = ["--shards", "12", "--global-batch-size", "96", "--stage", "2@0.2:0.02", "--stage", "1@0.02", "--seed", "3"]


def together(place, arguments, *, count, seconds=240):
    """Run `python ARGUMENTS` as so many workers in `place`; fail where one does not end with 0."""
    ports = ",".join(map(str, launcher._free_ports(count)))
    several = {"TFPAR_NUM_WORKERS": str(count), "TFPAR_HOST_TEMPLATE": "127.0.0.1", "TFPAR_PORT": ports}
    paths = [str(place) for place in (TESTS, TESTS / "steps")] + [*filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | several | {"PYTHONPATH": os.pathsep.join(paths), "TFPAR_WAIT_SECONDS": str(seconds)}
    command = [sys.executable, str(TESTS / "forked.py"), str(count), *arguments]
    parent = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        codes = json.loads(parent.communicate(timeout=seconds)[0] or "[]")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
    assert codes == [0] * count, {path.name: path.read_text()[-2000:] for path in place.glob("*.err")}
