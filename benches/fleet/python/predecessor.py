"""fastapi-tenancy's own TenantMigrationManager over tenants that are told on stdin. Says `ready` once all is imported."""
import asyncio
import json
import logging
import sys
import time

from fastapi_tenancy.core.config import TenancyConfig
from fastapi_tenancy.core.types import Tenant
from fastapi_tenancy.migrations.manager import TenantMigrationManager
from fastapi_tenancy.storage.memory import InMemoryTenantStore

logging.disable(logging.INFO)


async def main():
    order = json.loads(sys.stdin.readline())
    settings = {"database_url": order["url"], "isolation_strategy": order["isolation"]}
    if order["isolation"] == "database":
        settings["database_url_template"] = order["template"]
    store = InMemoryTenantStore()
    for tenant in order["tenants"]:
        await store.create(
            Tenant(
                id=tenant["id"],
                identifier=tenant["id"],
                name=tenant["id"],
                schema_name=tenant["schema"],
                database_url=tenant["url"],
            )
        )
    manager = TenantMigrationManager(TenancyConfig(**settings), store, order["ini"])
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    results = await manager.upgrade_all(revision=order["revision"], concurrency=order["concurrency"])
    seconds = time.perf_counter() - start
    failed = [r.get("error") for r in results if not r["success"]]
    print(json.dumps({"seconds": seconds, "failed": len(failed), "error": failed[0] if failed else None}), flush=True)


asyncio.run(main())
