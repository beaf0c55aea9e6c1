"""People who send the sample picture, one after the other.

::

    .venv/bin/locust -f loadtests/locustfile.py --headless --users 2 --run-time 20s

Finds a running local stack through `.run/gateway.json` (VISIONGATE_RUN_DIRECTORY); keep to that one machine.
The stack's key is of the tier `enterprise`, 1000 pictures at once and 1000 a minute: for more load, start the
stack with a tier table of your own (VISIONGATE_TIERS_FILE).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from locust import FastHttpUser, task

ROOT = Path(__file__).parents[1]
STACK = json.loads((Path(os.environ.get("VISIONGATE_RUN_DIRECTORY", ".run")) / "gateway.json").read_text())
PICTURE = (ROOT / "model_repo" / "shapes" / "sample.jpg").read_bytes()


class Caller(FastHttpUser):
    host = STACK["url"]

    @task
    def send_the_sample(self) -> None:
        headers = {"Authorization": f"Bearer {STACK['api_key']}", "Content-Type": "image/jpeg"}
        self.client.post("/v1/infer", data=PICTURE, headers=headers)  # type: ignore[arg-type]  # locust sends bytes, its annotation forgets them
