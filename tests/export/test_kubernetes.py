"""dev.export --format kubernetes: against the schemas of Kubernetes and of CloudNativePG."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from devstack.export.cloudnative_pg import major_of
from tests.conftest import ROOT
from tests.export.conftest import HERE, HOSTILE, ODD, PASSWORD, Exporter, documents, golden

CRDS = Path(os.environ.get("NV_CNPG_CRDS") or ROOT.parent / "shared" / "facts" / "cnpg")
"""CloudNativePG's CustomResourceDefinitions as it publishes them, where they are."""
EVERYTHING = {
    **HOSTILE,
    "INVOKE_PGB_POOL_MODE": "transaction",
    "INVOKE_PGB_PARAMETERS": json.dumps({"max_db_connections": 50, "log_stats": True}),
    "INVOKE_DB_PARAMETERS": json.dumps({"work_mem": "8MB", "jit": False, "shared_preload_libraries": "auto_explain"}),
}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no property that it does not name: the cluster would drop it without a word."""
    made = copy.deepcopy(schema)

    def close(node: Any) -> None:
        if isinstance(node, dict):
            if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node.setdefault("additionalProperties", False)
            for inner in node.values():
                close(inner)
        elif isinstance(node, list):
            for inner in node:
                close(inner)

    close(made)
    made["properties"]["metadata"] = {"type": "object"}
    return made


@functools.cache
def published(kind: str) -> dict[str, Any]:
    file = CRDS / f"postgresql.cnpg.io_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"CloudNativePG's CustomResourceDefinitions are not in {CRDS} (NV_CNPG_CRDS)")
    versions = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    schema: dict[str, Any] = versions[0]["schema"]["openAPIV3Schema"]
    return schema


def kept(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((HERE / "cloudnative-pg.json").read_text())[kind]
    return schema


def by_kind(folder: Path) -> dict[str, Any]:
    return {found["kind"]: found for found in documents(folder / "stack.yaml")}


@pytest.fixture(scope="module")
def usual(exporter: Exporter) -> Path:
    return exporter.export("--format", "kubernetes")


@pytest.fixture(scope="module")
def everything(exporter: Exporter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("everything") / "out"
    flags = ("--storage", "20Gi", "--instances", "3", "--image", "registry.example/api:7", "--db-image", "pg:18.1")
    return exporter.export("--format", "kubernetes", "--output", str(out), *flags, **EVERYTHING)


def test_the_manifests_as_a_whole(exporter: Exporter, usual: Path) -> None:
    text = exporter.normal((usual / "stack.yaml").read_text())
    golden("kubernetes.yaml", text)
    assert [found["kind"] for found in documents(usual / "stack.yaml")] == [
        "Cluster",
        "Pooler",
        "Deployment",
        "Service",
    ]
    before = {path: path.read_bytes() for path in usual.rglob("*") if path.is_file()}
    exporter.export("--format", "kubernetes")
    assert {path: path.read_bytes() for path in usual.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("which", ["usual", "everything"])
def test_kubernetes_own_kinds_are_valid(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    checked = []
    for name in ("stack.yaml", "secrets.yaml"):
        for found in documents(folder / name):
            if found["apiVersion"] in ("v1", "apps/v1"):
                kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)
                checked.append(found["kind"])
    assert sorted(checked) == ["Deployment", "Secret", "Secret", "Service"]


@pytest.mark.variations
@pytest.mark.parametrize("which", ["usual", "everything"])
@pytest.mark.parametrize("kind", ["Cluster", "Pooler"])
@pytest.mark.parametrize("source", [published, kept])
def test_cloudnative_pg_s_kinds_are_valid(source: Any, kind: str, which: str, request: pytest.FixtureRequest) -> None:
    schema = strict(source(kind))
    found = by_kind(request.getfixturevalue(which))[kind]
    jsonschema.validate(found, schema)
    spoils: list[dict[str, Any]] = [{"pgbounzer": {}}, {"instances": "many"}]
    for spoil in spoils:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**found, "spec": {**found["spec"], **spoil}}, schema)


@pytest.mark.parametrize("kind", ["Cluster", "Pooler"])
def test_what_is_kept_here_is_what_is_published(kind: str) -> None:
    def check(ours: Any, theirs: Any, path: str) -> None:
        if isinstance(ours, dict):
            assert isinstance(theirs, dict), path
            for name, inner in ours.items():
                assert name in theirs, f"{path}.{name}"
                check(inner, theirs[name], f"{path}.{name}")
        elif path.endswith(".required"):
            assert set(theirs) <= set(ours), path
        else:
            assert ours == theirs, path

    check(kept(kind), published(kind), kind)


def test_names_lead_to_each_other(usual: Path) -> None:
    found = by_kind(usual)
    cluster, pooler, deployment, service = (found[k] for k in ("Cluster", "Pooler", "Deployment", "Service"))
    secrets = {secret["metadata"]["name"]: secret for secret in documents(usual / "secrets.yaml")}
    owner = secrets[cluster["spec"]["bootstrap"]["initdb"]["secret"]["name"]]
    assert owner["type"] == "kubernetes.io/basic-auth"
    assert owner["stringData"]["username"] == cluster["spec"]["bootstrap"]["initdb"]["owner"]
    assert pooler["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    pod = deployment["spec"]["template"]
    [container] = pod["spec"]["containers"]
    variables = secrets[container["envFrom"][0]["secretRef"]["name"]]["stringData"]
    url = urlsplit(variables["DATABASE_URL"])
    assert (url.hostname, url.port) == (pooler["metadata"]["name"], 5432)
    assert url.password == owner["stringData"]["password"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} == {"/health"}


def test_a_new_password_is_taken_up(usual: Path) -> None:
    """CloudNativePG looks at a secret that somebody else made only while it has this label."""
    owner, _ = documents(usual / "secrets.yaml")
    assert owner["metadata"]["labels"]["cnpg.io/reload"] == "true"


def test_secrets_are_apart_and_private(exporter: Exporter, usual: Path) -> None:
    assert stat.S_IMODE((usual / "secrets.yaml").stat().st_mode) == 0o600
    for path in usual.rglob("*"):
        if path.is_file() and path.name != "secrets.yaml":
            assert not any(secret in path.read_text(errors="replace") for secret in exporter.secrets().values())
    # nor does git take it along, wherever the folder is
    subprocess.run(["git", "init", "-q", str(usual)], check=True)
    listed = subprocess.run(["git", "-C", str(usual), "status", "--porcelain", "-uall"], capture_output=True, text=True)
    shutil.rmtree(usual / ".git")
    assert "stack.yaml" in listed.stdout
    assert "secrets.yaml" not in listed.stdout


def test_what_is_the_stack_s_own_does_not_go_into_the_application_s_image(exporter: Exporter) -> None:
    out, package = exporter.root / "a [folder]", exporter.root / "keeps"
    (exporter.root / "requirements.txt").write_text("fastapi\n")
    package.mkdir()
    (package / "__init__.py").touch()
    env = {"INVOKE_API_DIR": ".", "INVOKE_DATA_DIR": package.name}
    try:
        folder = exporter.export("--format", "kubernetes", "--output", str(out), **env)
        ignored = (folder / "build" / "app.Containerfile.dockerignore").read_text().splitlines()
        removed = (folder / "build" / "app.Containerfile").read_text()
    finally:
        (exporter.root / "requirements.txt").unlink()
        shutil.rmtree(package)
        shutil.rmtree(out, ignore_errors=True)
    assert {"**/.env", "**/.env.*", "invoke.yaml", "export", "logs", "a \\[folder\\]"} <= set(ignored)
    assert "rm -rf -- './a [folder]' ./export ./invoke.json ./invoke.yaml ./invoke.yml ./logs\n" in removed
    assert not {"keeps", "a [folder]"} & set(ignored)


@pytest.mark.parametrize(("name", "inside"), [("shop", "shop"), ("größe-1.0", "größe-1.0"), ('a "b" $HOME\\', "app")])
def test_the_folder_s_name_in_the_image_is_one_that_can_be_written_there(
    exporter: Exporter, name: str, inside: str, tmp_path: Path
) -> None:
    app = tmp_path / name
    app.mkdir()
    (app / "requirements.txt").write_text("fastapi\n")
    folder = exporter.export("--format", "kubernetes", "--output", str(tmp_path / "out"), INVOKE_API_DIR=str(app))
    lines = (folder / "build" / "app.Containerfile").read_text().splitlines()
    assert {f"COPY . /srv/app/{inside}/", f"WORKDIR /srv/app/{inside}"} <= set(lines)
    [container] = by_kind(folder)["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["workingDir"] == f"/srv/app/{inside}"


def test_hostile_settings_are_read_back_as_they_are(everything: Path) -> None:
    found = by_kind(everything)
    spec = found["Cluster"]["spec"]
    initdb = spec["bootstrap"]["initdb"]
    assert (initdb["database"], initdb["owner"]) == ("on", "0x10")
    assert initdb["postInitApplicationSQL"][-1] == 'GRANT pg_monitor TO "0x10"'
    assert spec["postgresql"] == {
        "parameters": {
            "max_connections": "100",
            "pg_stat_statements.track_utility": "off",
            "work_mem": "8MB",
            "jit": "false",
        },
        "shared_preload_libraries": ["auto_explain"],
    }
    assert (spec["instances"], spec["storage"]["size"], spec["imageName"]) == (3, "20Gi", "pg:18.1")
    pgbouncer = found["Pooler"]["spec"]["pgbouncer"]
    assert pgbouncer["poolMode"] == "transaction"
    assert pgbouncer["parameters"].items() >= {"max_db_connections": "50", "log_stats": "true"}.items()
    [container] = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/api:7"
    assert container["readinessProbe"]["httpGet"]["path"] == HOSTILE["INVOKE_API_HEALTH_PATH"]
    assert {"name": "MEMORY_PROVIDER", "value": "no"} in container["env"]
    owner, variables = (secret["stringData"] for secret in documents(everything / "secrets.yaml"))
    assert owner == {"username": "0x10", "password": PASSWORD}
    assert {name: variables[name] for name in ODD} == ODD
    assert unquote(urlsplit(variables["DATABASE_URL"]).password or "") == PASSWORD


def test_the_image_is_that_of_the_same_postgresql(exporter: Exporter, tmp_path: Path) -> None:
    for image, named, provider in (
        ("pgvector/pgvector:pg16", "ghcr.io/cloudnative-pg/postgresql:16-standard-bookworm", None),
        ("pgvector/pgvector:0.8.1-pg16", "ghcr.io/cloudnative-pg/postgresql:16-standard-bookworm", None),
        ("docker.io/library/postgres:18.1", "ghcr.io/cloudnative-pg/postgresql:18-standard-bookworm", "builtin"),
    ):
        out = tmp_path / image.rpartition(":")[2]
        spec = by_kind(exporter.export("--format", "kubernetes", "--output", str(out), INVOKE_DB_IMAGE=image))
        jsonschema.validate(spec["Cluster"], strict(kept("Cluster")))
        assert spec["Cluster"]["spec"]["imageName"] == named
        assert spec["Cluster"]["spec"]["bootstrap"]["initdb"].get("localeProvider") == provider


MAJORS = {
    "pgvector/pgvector:pg16": 16,
    "pgvector/pgvector:0.8.1-pg18-trixie": 18,
    "postgres:18": 18,
    "postgres:15.4-alpine": 15,
    "postgis/postgis:16-3.4": 16,
    "localhost:5014/timescaledb:latest-pg15@sha256:17": 15,
    "registry.example:16/own:0.17": 17,
    "own": 17,
}


@pytest.mark.parametrize(("image", "major"), MAJORS.items())
def test_the_version_is_read_from_the_tag(image: str, major: int) -> None:
    assert major_of(image) == major_of("", image) == major
    assert major_of("own:14", image) == 14


def test_an_image_of_your_own_may_have_any_extension(exporter: Exporter, tmp_path: Path) -> None:
    flags = ("--format", "kubernetes", "--db-image", "registry.example/postgis:16", "--output", str(tmp_path / "out"))
    spec = by_kind(exporter.export(*flags, INVOKE_DB_EXTENSIONS='["postgis"]'))["Cluster"]["spec"]
    assert spec["imageName"] == "registry.example/postgis:16"
    assert "CloudNativePG's own, which has" not in (tmp_path / "out" / "stack.yaml").read_text()
    assert spec["bootstrap"]["initdb"]["postInitApplicationSQL"][0] == 'CREATE EXTENSION IF NOT EXISTS "postgis"'


REFUSED = [
    (("--storage", "much"), {}, "--storage 'much' is no amount"),
    (("--instances", "-1"), {}, "--instances -1 is out of range"),
    (("--image", "a b"), {}, "--image 'a b' is no image's name"),
    ((), {"INVOKE_PGB_POOL_MODE": "statement"}, "CloudNativePG's PgBouncer has no pool mode statement"),
    ((), {"INVOKE_DB_PARAMETERS": '{"ssl": "on"}'}, "CloudNativePG does not take db.parameters.ssl"),
    ((), {"INVOKE_DB_PARAMETERS": '{"temp_tablespaces": "x"}'}, "does not take db.parameters.temp_tablespaces"),
    ((), {"INVOKE_DB_USER": "streaming_replica"}, "CloudNativePG has a role streaming_replica of its own"),
    ((), {"INVOKE_DB_EXTENSIONS": '["vector", "postgis"]'}, "CloudNativePG's own image has no extension postgis"),
    ((), {"INVOKE_PGB_PARAMETERS": '{"so_reuseport": 1}'}, "CloudNativePG does not take pgb.parameters.so_reuseport"),
]


@pytest.mark.variations
@pytest.mark.parametrize(("words", "env", "said"), REFUSED)
def test_what_has_no_place_in_a_cluster_is_refused(
    exporter: Exporter, words: tuple[str, ...], env: dict[str, str], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = exporter.inv("dev.export", "--format", "kubernetes", "--output", str(out), *words, expect=2, **env)
    assert said in done.stderr
    assert not out.exists()
