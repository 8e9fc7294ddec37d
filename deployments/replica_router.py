"""Serve's request router for the stages whose replicas are called by name: a lane goes where its sender chose.

Serve pickles this module by value, so what it shares with the process is in a module of its own (replica_lists.py).
"""

import random

from ray.serve.request_router import MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deployments.dispatch import Dispatch
from deployments.replica_lists import DeploymentKey, publish


class ReplicaRouter(MultiplexMixin, RequestRouter):
    """Sends a call that carries a Dispatch to its replica; if that has gone, and all other calls, to any.

    Calls for a checkpoint go to a replica that advertises it, if there is one.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, of which Serve takes the first that has room, the least busy one of a rank."""
        if pending_request is None:
            return [candidate_replicas]
        target = next((each.replica for each in pending_request.args if isinstance(each, Dispatch)), "")
        chosen = [replica for replica in candidate_replicas if replica.replica_id.unique_id == target]
        if chosen:
            return [chosen]
        # after the first round Serve waits for a moment between two
        pending_request.routing_context.should_backoff = True
        if pending_request.metadata.multiplexed_model_id:
            holders = self.apply_multiplex_routing(pending_request)
            candidate_replicas = [replica for replica in candidate_replicas if replica.replica_id in holders]
        # the power of two choices: of two drawn ones the less busy one
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's controller has a new list."""
        super().update_replicas(replicas)
        self._publish()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call has found that a replica is gone."""
        super().on_replica_actor_died(replica_id)
        self._publish()

    def _publish(self) -> None:
        key = DeploymentKey(self.app_name, self._deployment_id.name)
        publish(
            key,
            {
                replica.replica_id.unique_id: frozenset(replica.multiplexed_model_ids)
                for replica in self.curr_replicas.values()
            },
        )
