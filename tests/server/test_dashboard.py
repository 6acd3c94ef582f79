"""The dashboard asks for what is counted, and compose puts its files where Grafana and Prometheus look."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from server.engine.batchers.cache_metrics import CacheMetrics
from server.metrics import Metrics

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "padless.json").read_text())
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


def load_yaml(*parts: str) -> Any:
    return yaml.safe_load(DOCKER.joinpath(*parts).read_text())


def counted_names() -> set[str]:
    registry = CollectorRegistry()
    CacheMetrics(Metrics(registry), "m", 0)
    return {family.name + suffix for family in registry.collect() for suffix in SUFFIXES[family.type]}


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"] for variable in DASHBOARD["templating"]["list"])


def test_every_query_is_of_a_metric_there_is() -> None:
    counted = counted_names()
    for query in queries():
        names = re.findall(r"padless_\w+", query)
        assert names and set(names) <= counted, query


def test_only_counters_have_rates() -> None:
    """A rate of a gauge draws something too, and it means nothing."""
    for query in queries():
        for name in re.findall(r"(?:rate|increase)\((\w+)", query):
            assert name.endswith(("_total", "_bucket")), query


def test_panels_are_apart() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_panels_ask_the_provisioned_source() -> None:
    (source,) = load_yaml("grafana", "provisioning", "datasources", "prometheus.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    services = load_yaml("compose.yaml")["services"]
    assert source["url"].removeprefix("http://").partition(":")[0] in services
    (scrape,) = load_yaml("prometheus", "prometheus.yml")["scrape_configs"]
    (target,) = scrape["static_configs"][0]["targets"]
    assert target.partition(":")[0] in services


def test_compose_mounts_what_is_provisioned() -> None:
    (provider,) = load_yaml("grafana", "provisioning", "dashboards", "padless.yaml")["providers"]
    grafana = load_yaml("compose.yaml")["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert {target: (DOCKER / source).is_dir() for source, target in mounts.items()} == {
        "/etc/grafana/provisioning/datasources": True,
        "/etc/grafana/provisioning/dashboards": True,
        provider["options"]["path"]: True,
    }
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(provider["options"]["path"])


def test_images_are_pinned() -> None:
    images = [service["image"] for service in load_yaml("compose.yaml")["services"].values() if "build" not in service]
    for name in ("Dockerfile", "Dockerfile.cuda"):
        images += re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", (DOCKER / name).read_text(), re.MULTILINE)
    assert len(images) == 4
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+", image), f"{image} names no exact version"
