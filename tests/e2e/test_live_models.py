"""Models come, change and go under a running gateway, and nobody who asks for another notices."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from bench.gateway import UNLIMITED_TIER
from export_pipeline.repository.swap import exchange
from tests.support.exports import exporting, golden_handful, run_arguments
from tests.support.problems import assert_problem
from tests.support.repositories import copy_entry
from tests.support.stack import ROOT, Stack, output_of, running_stack
from tests.support.waiting import eventually

SAMPLE = (ROOT / "model_repo" / "shapes" / "sample.jpg").read_bytes()
SERVED_WITHIN_SECONDS = 5.0
ModelConfig = model_config_pb2.ModelConfig
Change = Callable[[Path, dict[str, Any], Any], None]
"""Of a draft: its folder, its metadata and its configuration."""

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Live:
    """A stack of its own, and the repository that it serves, to be changed."""

    stack: Stack
    repository: Path

    def ask(self, model: str) -> httpx.Response:
        return httpx.post(
            f"{self.stack.url}/v1/infer/{model}",
            content=SAMPLE,
            headers={**self.stack.bearer, "Content-Type": "image/jpeg"},
            timeout=20,
        )

    def serves(self, name: str) -> bool:
        return self.ask(name).status_code == 200

    def draft(self, name: str, change: Change | None = None) -> Path:
        """The sample's entry under another name, in a folder that nobody looks into yet."""
        draft = self.repository / f".{name}.draft"
        shutil.copytree(self.repository / "shapes", draft)
        metadata = orjson.loads((draft / "metadata.json").read_bytes())
        metadata["model_info"]["model_name"] = name
        config = text_format.Parse((draft / "config.pbtxt").read_text(), ModelConfig())
        config.name = name
        if change is not None:
            change(draft, metadata, config)
        (draft / "metadata.json").write_bytes(orjson.dumps(metadata))
        (draft / "config.pbtxt").write_text(text_format.MessageToString(config))
        return draft


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    repository = folder / "model_repo"
    shutil.copytree(ROOT / "model_repo", repository)
    copy_entry(repository / "shapes", repository / "broken", model=b"no model")
    tiers = folder / "tiers.yaml"
    tiers.write_text(UNLIMITED_TIER)
    with running_stack(folder / ".run", MODEL_REPOSITORY=str(repository), TIERS_FILE=str(tiers)) as stack:
        yield Live(stack, repository)


@dataclass
class Traffic:
    """What clients got who asked for `shapes` all the while: status and contract, client by client."""

    answers: dict[int, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def statuses(self) -> set[int]:
        return {status for answers in self.answers.values() for status, _ in answers}

    def contracts(self, client: int) -> list[str]:
        """Those that a client saw, in order, without repetitions."""
        return [contract for contract, _ in groupby(contract for _, contract in self.answers[client])]


@contextmanager
def traffic(live: Live, clients: int = 3) -> Iterator[Traffic]:
    seen = Traffic({client: [] for client in range(clients)})
    over = threading.Event()

    def keep_asking(client: int) -> None:
        while not over.is_set():
            response = live.ask("shapes")
            seen.answers[client].append((response.status_code, response.headers.get("X-Model-Contract", "")))

    threads = [threading.Thread(target=keep_asking, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_new_model_is_served_within_five_seconds(live: Live) -> None:
    """The best of three: whatever else this machine does at the moment is not the gateway's doing."""
    took: list[float] = []
    with traffic(live, clients=1) as seen:
        while len(took) < 3 and min(took, default=math.inf) > SERVED_WITHIN_SECONDS:
            name = "fresh" + "er" * len(took)
            draft = live.draft(name)
            began = time.monotonic()
            draft.rename(live.repository / name)
            assert eventually(partial(live.serves, name))
            took.append(time.monotonic() - began)

    assert min(took) <= SERVED_WITHIN_SECONDS
    assert seen.statuses == {200}
    assert live.ask("fresh").json()["predictions"] == live.ask("shapes").json()["predictions"]
    listed = live.stack.command("models").stdout
    assert "fresh" in listed


def test_a_model_that_triton_cannot_load_does_not_keep_the_others_from_starting(live: Live) -> None:
    assert re.search(r"broken is not served: .*model\.onnx", output_of(live.stack.run_directory))
    assert_problem(live.ask("broken"), 503, "backend_unavailable")
    listed = live.stack.command("models").stdout
    assert "broken is not served: not loaded (see the gateway's log)" in listed
    assert "shapes is not served" not in listed


def test_a_new_version_takes_over_without_a_failed_request(live: Live) -> None:
    def second(draft: Path, metadata: dict[str, Any], config: Any) -> None:
        (draft / "1").rename(draft / "2")
        shutil.copytree(live.repository / "shapes" / "1", draft / "1")
        metadata["model_info"]["version"] = "2"
        config.version_policy.specific.versions[:] = [1, 2]

    before = live.ask("shapes").headers["X-Model-Contract"]
    draft = live.draft("shapes", second)
    with traffic(live) as seen:
        exchange(draft, live.repository / "shapes")
        assert eventually(lambda: live.ask("shapes").json().get("model_version") == "2")
    shutil.rmtree(draft)

    after = live.ask("shapes").headers["X-Model-Contract"]
    assert seen.statuses == {200}
    for client in seen.answers:
        assert seen.contracts(client) in ([before, after], [before])
    assert any(seen.contracts(client) == [before, after] for client in seen.answers)


def test_versions_that_do_not_stay_side_by_side_fail_no_request_either(live: Live) -> None:
    """With other tensors than the one before, a version is the only one that Triton keeps loaded."""

    def publish(number: int) -> None:
        def only(draft: Path, metadata: dict[str, Any], config: Any) -> None:
            (draft / metadata["model_info"]["version"]).rename(draft / str(number))
            metadata["model_info"]["version"] = str(number)
            config.version_policy.specific.versions[:] = [number]

        draft = live.draft("shapes", only)
        exchange(draft, live.repository / "shapes")
        shutil.rmtree(draft)

    with traffic(live, clients=6) as seen:
        publish(3)
        assert eventually(lambda: live.ask("shapes").json().get("model_version") == "3")
        publish(4)
        publish(5)
        assert eventually(lambda: live.ask("shapes").json().get("model_version") == "5")

    assert seen.statuses == {200}


def test_half_a_model_is_not_served_until_it_is_whole(live: Live) -> None:
    draft = live.draft("growing")
    model = Path(live.ask("shapes").json()["model_version"], "model.onnx")
    whole = (draft / model).read_bytes()
    (draft / model).write_bytes(whole[:1000])
    draft.rename(live.repository / "growing")
    assert eventually(lambda: "1000 bytes" in live.ask("growing").text)
    assert_problem(live.ask("growing"), 404, "model_not_found")

    (live.repository / "growing" / model).write_bytes(whole)

    assert eventually(lambda: live.ask("growing").status_code == 200)


def test_a_model_for_another_task_is_refused_with_the_reason(live: Live) -> None:
    def segmentation(_: Path, metadata: dict[str, Any], __: Any) -> None:
        metadata["model_info"]["task_type"] = "segmentation"

    live.draft("masks", segmentation).rename(live.repository / "masks")

    assert eventually(lambda: "segmentation" in live.ask("masks").text)
    assert_problem(live.ask("masks"), 404, "model_not_found")
    assert "masks is not served" in live.stack.command("models").stdout
    assert str(live.repository) not in live.ask("masks").text


def test_a_model_that_is_taken_away_is_not_there_any_more(live: Live) -> None:
    live.draft("passing").rename(live.repository / "passing")
    assert eventually(lambda: live.ask("passing").status_code == 200)

    with traffic(live) as seen:
        (live.repository / "passing").rename(live.repository / ".passing.gone")
        assert eventually(lambda: live.ask("passing").status_code == 404)

    assert seen.statuses == {200}


def test_what_an_export_publishes_is_served_without_a_restart(live: Live, tmp_path: Path) -> None:
    pictures = golden_handful(tmp_path / "pictures")
    arguments = run_arguments(tmp_path / "out", live.repository, pictures, name="exported")
    with traffic(live, clients=1) as seen:
        with exporting(arguments) as process:
            ended = process.until_end()
        assert eventually(lambda: live.ask("exported").status_code == 200)

    assert ended.exit_code == 0, ended.err
    assert seen.statuses == {200}
    described = httpx.get(f"{live.stack.url}/v1/models/exported", headers=live.stack.bearer).json()
    assert described["validation"]["passed"] is True
    assert described["validation"]["paths"]["gateway"]["unmatched"] == 0
    assert described["performance"]["latency_ms"]["p50"] > 0
    answer = live.ask("exported")
    contract = (live.repository / "exported" / "metadata.json").read_bytes()
    assert answer.headers["X-Model-Contract"] == hashlib.sha256(contract).hexdigest()
    assert answer.json()["predictions"] == live.ask("shapes").json()["predictions"]


def test_a_classifier_goes_from_its_checkpoint_to_answers(live: Live, tmp_path: Path) -> None:
    checkpoint = tmp_path / "classifier.pt"
    make = (
        "import sys; from pathlib import Path; from tests.torch.networks import *; "
        "save_checkpoint(Path(sys.argv[1]), make_network('yolo11n', 'classification'))"
    )
    subprocess.run(
        [ROOT / ".venv-export" / "bin" / "python", "-c", make, checkpoint], cwd=ROOT, check=True, timeout=100
    )
    pictures = golden_handful(tmp_path / "pictures")
    arguments = run_arguments(
        tmp_path / "out",
        live.repository,
        pictures,
        name="classifier",
        checkpoint=str(checkpoint),
        imgsz="64",
    )
    with exporting(arguments) as process:
        ended = process.until_end()

    assert ended.exit_code == 0, ended.err
    assert eventually(lambda: live.ask("classifier").status_code == 200)
    predictions = live.ask("classifier").json()["predictions"]
    assert sorted(each["class"] for each in predictions) == ["cat", "dog", "fox"]
    assert sum(each["confidence"] for each in predictions) == pytest.approx(1, abs=1e-3)
    assert predictions == sorted(predictions, key=lambda each: -each["confidence"])
    assert all(each.keys() == {"class", "class_id", "confidence"} for each in predictions)
    described = httpx.get(f"{live.stack.url}/v1/models/classifier", headers=live.stack.bearer).json()
    assert described["validation"]["paths"]["gateway"]["unmatched"] == 0
