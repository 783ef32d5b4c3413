"""Checks deploy/compose.yaml against the compose specification, and that the files it mounts are there."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import yaml

file = Path(sys.argv[1])
compose = yaml.safe_load(file.read_text())
# docker-compose 1.29 is old, but it is the only one on PyPI, and it brings the specification along.
home = Path(find_spec("compose").submodule_search_locations[0])
schema = json.loads((home / "config/compose_spec.json").read_text())
# Newer than that.
compose.pop("name")
for error in jsonschema.Draft7Validator(schema).iter_errors(compose):
    sys.exit(f"{file}: {error.json_path}: {error.message[:300]}")

services = compose["services"]
wrong = []
for name, service in services.items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith(".") and not (file.parent / source).exists():
            wrong.append(f"{name}: {source} is not there")
    for other in service.get("depends_on", []):
        if other not in services:
            wrong.append(f"{name}: depends on {other}, which is no service")
    if "build" in service:
        context = file.parent / service["build"]["context"]
        dockerfile = (context / service["build"]["dockerfile"]).read_text()
        if f" AS {service['build']['target']}\n" not in dockerfile:
            wrong.append(f"{name}: the Dockerfile has no target {service['build']['target']}")
if wrong:
    sys.exit("\n".join(wrong))
