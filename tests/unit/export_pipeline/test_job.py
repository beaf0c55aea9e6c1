from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from export_pipeline.errors import BadInput, ExportError
from export_pipeline.job import JobFolder, StepRecord, sha256_of
from tests.support.export_stages import new_job


@pytest.fixture
def job(tmp_path: Path) -> JobFolder:
    return new_job(tmp_path / "job")


def _fail_after(path: Path) -> None:
    path.touch()
    raise FileNotFoundError("another file")


def step_record(sha256: str = "a") -> StepRecord:
    return StepRecord(stage="export", seconds=1.5, sha256=sha256, inputs_sha256="", command="again")


def test_a_job_is_read_as_it_was_written(job: JobFolder) -> None:
    record = job.record()

    assert (record.version, record.request.name, record.request.publish) == (1, "cats", Path("/nowhere"))
    assert job.exists


def test_a_folder_without_a_job_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no export job"):
        JobFolder(tmp_path).record()


def test_a_job_file_that_is_not_ours_is_an_error(job: JobFolder) -> None:
    (job.path / "job.json").write_text("{}")

    with pytest.raises(ExportError, match=r"job\.json is not what an earlier stage wrote"):
        job.record()


@pytest.mark.parametrize(
    ("files", "foreign"),
    [
        ([], []),
        ([".lock", ".job.json.draft"], []),
        (["notes.txt", ".lock"], ["notes.txt"]),
        (["job.json", "notes.txt"], []),
    ],
)
def test_files_of_somebody_else_are_seen_before_a_job_begins(
    tmp_path: Path, files: list[str], foreign: list[str]
) -> None:
    for name in files:
        (tmp_path / name).touch()

    assert JobFolder(tmp_path).foreign_files() == foreign
    assert JobFolder(tmp_path / "new").foreign_files() == []


def test_steps_are_saved_and_forgotten(job: JobFolder) -> None:
    for name in ("checkpoint.fetch", "export.graph"):
        job.save_step(name, step_record(name))

    job.forget_steps(["checkpoint.fetch", "publish.publish"])

    assert job.state().steps == {"export.graph": step_record("export.graph")}


def test_a_file_is_written_whole_or_not_at_all(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job.write("deep/in/it.json", b"old")

    def fail(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ExportError, match=r"There is no room left for .*it\.json: No space left on device\."):
        job.write("deep/in/it.json", b"new")

    assert (job.path / "deep/in/it.json").read_bytes() == b"old"


def test_a_draft_that_is_a_link_is_not_followed(job: JobFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (job.path / ".it.json.draft").symlink_to(precious)

    job.write("it.json", b"ours")

    assert precious.read_text() == "precious"
    assert (job.path / "it.json").read_bytes() == b"ours"
    assert not (job.path / "it.json").is_symlink()


def test_a_folder_takes_its_place_when_it_is_full(job: JobFolder) -> None:
    for content in ("first", "second"):
        with job.drafting(job.model_folder) as draft:
            (draft / content).write_text(content)
            assert not (job.model_folder / content).exists()

    assert [path.name for path in job.model_folder.iterdir()] == ["second"]


def test_a_folder_that_fails_leaves_the_old_one_and_no_draft(job: JobFolder) -> None:
    with job.drafting(job.model_folder) as draft:
        (draft / "old").touch()

    with pytest.raises(FileNotFoundError), job.drafting(job.model_folder) as draft:
        _fail_after(draft / "new")

    assert [path.name for path in job.model_folder.iterdir()] == ["old"]
    assert not draft.exists()


@pytest.mark.parametrize("place", ["model", ".model.draft"])
def test_a_folder_that_is_a_link_is_replaced_and_not_followed(
    job: JobFolder, tmp_path: Path, place: str
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (job.path / place).symlink_to(precious)

    with job.drafting(job.model_folder) as draft:
        (draft / "ours").touch()

    assert [path.name for path in precious.iterdir()] == ["file"]
    assert not job.model_folder.is_symlink()


def test_the_digest_is_over_names_and_contents(job: JobFolder) -> None:
    def digest(**files: str) -> str:
        with job.drafting(job.model_folder) as draft:
            for name, content in files.items():
                (draft / name).write_text(content)
        found = job.digest(["model", "job.json"])
        assert found is not None
        return found

    assert digest(a="1", b="2") == digest(b="2", a="1")
    assert len({digest(a="1", b="2"), digest(a="2", b="1"), digest(a="1"), digest(ab="12"), digest()}) == 5


def test_there_is_no_digest_where_a_result_is_missing(job: JobFolder) -> None:
    assert job.digest(["job.json", "model"]) is None


def test_only_one_process_works_on_a_job(job: JobFolder) -> None:
    take = (
        "import sys, pathlib\n"
        "from export_pipeline.job import JobFolder\n"
        "with JobFolder(pathlib.Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", take, str(job.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(BadInput, match="Another process is working on"), job.locked():
            pass
        other.kill()

    with job.locked():
        pass


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_tidying_refuses_what_is_no_plain_file(job: JobFolder, kind: str) -> None:
    odd = job.path / "model" / "odd"
    odd.parent.mkdir()
    if kind == "link":
        odd.symlink_to(job.path / "job.json")
    else:
        os.mkfifo(odd)

    with pytest.raises(ExportError, match="odd is neither a file nor a folder"):
        job.tidy()


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_what_is_deeper_than_python_recurses_is_cleared_away(job: JobFolder) -> None:
    draft = job.path / ".isolated.draft"
    draft.mkdir()
    (draft / "file").touch()
    place = os.open(draft, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("inner", dir_fd=place)
        deeper = os.open("inner", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.symlink("/etc", "link", dir_fd=place)
    os.close(place)

    job.tidy()

    assert [path.name for path in job.path.iterdir()] == ["job.json"]


def test_a_name_that_is_no_text_is_part_of_the_digest(job: JobFolder) -> None:
    pictures = os.fsencode(job.path / "pictures")
    digests = []
    for name in (b"caf\xe9.jpg", b"caf\xe8.jpg"):
        with job.drafting(job.pictures) as draft:
            Path(os.fsdecode(os.fsencode(draft) + b"/" + name)).touch()
        digests.append(job.digest(["pictures"]))

    assert os.listdir(pictures) == [b"caf\xe8.jpg"]  # noqa: PTH208 - as bytes
    assert None not in digests
    assert len(set(digests)) == 2


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"steps": ' * 200_000, b" " * (64 * 1024**2 + 1)])
def test_facts_that_would_overwhelm_a_parser_are_one_sentence(job: JobFolder, content: bytes) -> None:
    (job.path / "state.json").write_bytes(content)

    with pytest.raises(ExportError, match=r"state\.json (is not what|has more bytes than)"):
        job.state()
