"""A router's part that calls webhooks, in a process of its own: one round, with the settings of its argument."""

import asyncio
import json
import sys

from serve_app.config.settings import Settings
from serve_app.jobs.db.store import JobStore
from serve_app.observability.metrics import FrontMetrics
from serve_app.webhooks.delivery import WebhookDelivery


async def main() -> None:
    settings = Settings.model_validate(json.loads(sys.argv[1]))
    store = JobStore(settings.jobs.database_url)
    await store.open()
    delivery = WebhookDelivery(settings.webhooks, store=store, metrics=FrontMetrics(), body_of=lambda job, _: b"{}")
    await asyncio.gather(*await delivery.begin_due())


asyncio.run(main())
