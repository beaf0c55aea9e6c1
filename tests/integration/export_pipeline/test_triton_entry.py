"""Every kind of entry in the real Triton: loaded, warmed up, asked, and replaced under its eyes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc

from export_pipeline.repository import next_version, publish_entry, set_default
from serving.triton.launcher import TritonServer
from tests.support.export_jobs import KINDS, SIDE_PX, make_entry
from tests.support.ports import free_triton_ports

START_TIMEOUT_SECONDS = 60.0
TIMEOUT_SECONDS = 20.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published as the pipeline publishes: one entry of each kind, by the kind's name."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        publish_entry(root, make_entry(tmp_path_factory.mktemp("job"), kind, name=kind), new_version=False)
    return root


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(
        repository, list(KINDS), free_triton_ports(), run_directory=tmp_path_factory.mktemp("run")
    ) as running:
        running.wait_ready(START_TIMEOUT_SECONDS)
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as connected:
        yield connected


def ask(
    client: grpc.InferenceServerClient, kind: str, batch_size: int, *, version: str = "", name: str = ""
) -> dict[str, NDArray[np.generic]]:
    """The outputs for a batch of black pictures."""
    embedded = KINDS[kind].embedded
    shape = [batch_size, SIDE_PX, SIDE_PX, 3] if embedded else [batch_size, 3, SIDE_PX, SIDE_PX]
    images = grpc.InferInput("images", shape, "UINT8" if embedded else "FP32")
    images.set_data_from_numpy(np.zeros(shape, np.uint8 if embedded else np.float32))
    answer = client.infer(name or kind, [images], model_version=version, client_timeout=TIMEOUT_SECONDS)
    return {output: answer.as_numpy(output) for output in KINDS[kind].rows}


def load(server: TritonServer, name: str) -> None:
    """As the gateway has it done: explicit control."""
    httpx.post(
        f"{server.http_url}/v2/repository/models/{name}/load", timeout=START_TIMEOUT_SECONDS
    ).raise_for_status()


def ready_versions(server: TritonServer, name: str) -> list[str]:
    index = httpx.post(f"{server.http_url}/v2/repository/index", timeout=TIMEOUT_SECONDS).raise_for_status()
    return sorted(
        entry["version"] for entry in index.json() if entry["name"] == name and entry.get("state") == "READY"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_loaded_and_answers(client: grpc.InferenceServerClient, kind: str, batch_size: int) -> None:
    if KINDS[kind].fixed_batch and batch_size > 1:
        with pytest.raises(grpc.InferenceServerException, match="shape"):
            ask(client, kind, batch_size)
        return

    outputs = ask(client, kind, batch_size)

    assert list(outputs) == list(KINDS[kind].rows)
    for name, rows in KINDS[kind].rows.items():
        expected = np.stack([rows] * batch_size)
        assert outputs[name].dtype == (np.float16 if KINDS[kind].half else np.float32)
        assert np.allclose(outputs[name], expected, atol=1e-3 if KINDS[kind].half else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_its_queue_is_bounded_and_its_batches_are_what_it_says(server: TritonServer, kind: str) -> None:
    config = httpx.get(f"{server.http_url}/v2/models/{kind}/config", timeout=TIMEOUT_SECONDS).json()

    assert config["max_batch_size"] == (0 if KINDS[kind].fixed_batch else 16)
    batching = config["dynamic_batching"]
    assert (batching["priority_levels"], batching["default_priority_level"]) == (3, 3)
    policy = batching["default_queue_policy"]
    assert (policy["max_queue_size"], policy["allow_timeout_override"]) == (64, True)
    assert [group["count"] for group in config["instance_group"]] == [2]
    assert config["version_policy"] == {"specific": {"versions": [1]}}


def test_a_second_version_and_another_default(
    server: TritonServer, client: grpc.InferenceServerClient, repository: Path, tmp_path: Path
) -> None:
    """Requests name their version, and the one before stays until there is a third."""
    kind = KINDS["raw"]
    name = "replaced"
    kinds = [replace(kind, rows={"predictions": kind.rows["predictions"] + step}) for step in range(4)]
    for version in (1, 2, 3):
        if version > 1:
            assert next_version(repository, name, new_version=True) == version
        entry = make_entry(
            tmp_path / str(version), kinds[version], name=name, version=version, checkpoint=f"{version}.pt"
        )
        publish_entry(repository, entry, new_version=version > 1)
        load(server, name)

        loaded = [str(each) for each in (version - 1, version) if each]
        assert ready_versions(server, name) == loaded
        for each in loaded:
            answer = ask(client, "raw", 2, version=each, name=name)["predictions"]
            assert np.allclose(answer, kinds[int(each)].rows["predictions"])

    set_default(repository, name, 1)
    load(server, name)

    assert ready_versions(server, name) == ["1", "3"]
    answer = ask(client, "raw", 1, version="1", name=name)["predictions"]
    assert np.allclose(answer, kinds[1].rows["predictions"])


def test_a_version_with_other_tensors_replaces_the_one_before(
    server: TritonServer, client: grpc.InferenceServerClient, repository: Path, tmp_path: Path
) -> None:
    name = "reshaped"
    publish_entry(repository, make_entry(tmp_path / "1", "raw", name=name), new_version=False)
    load(server, name)
    publish_entry(
        repository, make_entry(tmp_path / "2", "end_to_end", name=name, version=2), new_version=True
    )

    load(server, name)

    assert ready_versions(server, name) == ["2"]
    answer = ask(client, "end_to_end", 2, version="2", name=name)["predictions"]
    assert answer.shape == (2, 3, 6)
