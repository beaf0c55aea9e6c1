"""What the export environment is made of, and what its installer is told."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from export_pipeline.environment import (
    FOLDER_VARIABLE,
    Recipe,
    folder_of,
    installer_environment,
    own_recipe,
)
from export_pipeline.errors import ExportError


def test_the_recipe_is_the_extra_and_nothing_of_the_gateway() -> None:
    recipe = own_recipe()

    names = {requirement.partition(">")[0] for requirement in recipe.requirements}
    assert {"torch", "torchvision", "ultralytics-opencv-headless", "onnx", "onnxruntime"} <= names
    assert not names & {"ray[serve]", "fastapi", "redis", "visiongate", "uv"}
    assert "\ntorch==" in recipe.constraints


@pytest.mark.parametrize(
    ("line", "requirement"),
    [
        ('torch>=2.6; extra == "export"', ("torch>=2.6",)),
        ("torch>=2.6 ; extra == 'export'", ("torch>=2.6",)),
        (
            'torch>=2.6; (python_version < "3.13") and extra == "export"',
            ('torch>=2.6 ; python_version < "3.13"',),
        ),
        ("fastapi>=0.115", ()),
        ('asyncpg>=0.30; extra == "postgresql"', ()),
        ('visiongate[local]; extra == "dev"', ()),
    ],
)
def test_requirements_are_those_of_the_extra(
    line: str, requirement: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: [line])

    assert own_recipe().requirements == requirement


def test_without_an_installation_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)

    with pytest.raises(ExportError, match="visiongate is not installed"):
        own_recipe()


def test_whatever_makes_a_difference_makes_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Recipe(("a",), ""), Recipe(("a",), "a==1"), Recipe(("a", "b"), ""), Recipe(("ab",), "")]
    fingerprints = {recipe.fingerprint for recipe in recipes}
    monkeypatch.setattr(sys, "version", "3.99")
    fingerprints.add(recipes[0].fingerprint)

    assert len(fingerprints) == 5


def test_its_place_is_beside_ours_or_where_the_variable_says() -> None:
    assert folder_of({}) == Path(sys.prefix).parent / ".venv-export"
    assert folder_of({FOLDER_VARIABLE: ""}) == Path(sys.prefix).parent / ".venv-export"
    assert folder_of({FOLDER_VARIABLE: "/opt/export"}) == Path("/opt/export")


def test_the_installer_is_told_what_it_needs_and_no_secret() -> None:
    needed = {
        "HTTPS_PROXY": "p",
        "no_proxy": "n",
        "UV_CACHE_DIR": "c",
        "SSL_CERT_FILE": "s",
        "HOME": "h",
        "PATH": "b",
        "TMPDIR": "t",
    }
    secret = {
        "AWS_SECRET_ACCESS_KEY": "1",
        "VISIONGATE_ADMIN_TOKEN": "2",
        "HOMEPAGE": "3",
        "GITHUB_TOKEN": "4",
    }

    assert installer_environment(needed | secret) == needed


@pytest.mark.parametrize(("own", "expected"), [({}, "pip's"), ({"UV_DEFAULT_INDEX": "uv's"}, "uv's")])
def test_the_index_of_pip_is_the_installers_if_it_has_none(own: dict[str, str], expected: str) -> None:
    told = installer_environment({"PIP_INDEX_URL": "pip's", **own})

    assert told == {"UV_DEFAULT_INDEX": expected}
