"""One process that has imported Alembic, and calls it for one tenant after the other. Says `ready` once it has."""
import argparse
import json
import sys
import time

from alembic import command
from alembic.config import Config


def main():
    order = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    failed, error = 0, None
    for tenant in order["tenants"]:
        options = [f"url={tenant['url'] or order['url']}"]
        if tenant["schema"]:
            options.append(f"schema={tenant['schema']}")
        # Called from code, `-x` arguments arrive only through the command options.
        config = Config(order["ini"], cmd_opts=argparse.Namespace(x=options))
        try:
            command.upgrade(config, order["revision"])
        except Exception as problem:
            failed, error = failed + 1, str(problem)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "failed": failed, "error": error}), flush=True)


main()
