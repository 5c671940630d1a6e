"""Several nodes behind one ``lease()``: balancing, ejection, roles, discovery.

>>> from poolkit.cluster import Cluster, Node
"""

from ..policies.balance import (
    Balancer,
    Candidate,
    LeastInUse,
    PeakEwma,
    RandomChoice,
    RoundRobin,
    SmoothWeighted,
    WeightedRandom,
)
from ..policies.dynamic import DynamicWeights
from ..policies.merging import concat, largest, merge_sorted, smallest, top, total
from ..policies.routing import (
    FunctionRouter,
    JumpRouter,
    LookupRouter,
    RangeRouter,
    RendezvousRouter,
    RingRouter,
    Router,
)
from ._async import AsyncCluster
from ._blocks import AsyncLeaseBlock, AsyncNodeLease, LeaseBlock, NodeLease
from ._config import ClusterConfig, ClusterSettings, TierConfig
from ._etcd import EtcdError
from ._events import ClusterEvent, ClusterEventKind, ClusterStats, NodeState, NodeStats, NoNodeAvailable
from ._leases import AsyncClusterLease, ClusterLease, ClusterLeaseRequest
from ._node import Node
from ._nodepool import NodePool
from ._scatter import Scattered, ScatterFailed
from ._shards import AsyncShardedCluster, ShardedCluster
from ._threads import Cluster
from .discovery import (
    Discovery,
    DNSDiscovery,
    EtcdDiscovery,
    FileDiscovery,
    Found,
    SRVDiscovery,
    StaticDiscovery,
    parse_node,
    parse_nodes,
)

__all__ = (
    "Cluster",
    "AsyncCluster",
    "ClusterLease",
    "AsyncClusterLease",
    "ClusterLeaseRequest",
    "ClusterConfig",
    "ClusterSettings",
    "TierConfig",
    "Node",
    "NodePool",
    "NodeLease",
    "AsyncNodeLease",
    "LeaseBlock",
    "AsyncLeaseBlock",
    "NoNodeAvailable",
    "ClusterEvent",
    "ClusterEventKind",
    "ClusterStats",
    "NodeStats",
    "NodeState",
    "Discovery",
    "Found",
    "StaticDiscovery",
    "FileDiscovery",
    "DNSDiscovery",
    "SRVDiscovery",
    "EtcdDiscovery",
    "EtcdError",
    "parse_nodes",
    "parse_node",
    "Balancer",
    "Candidate",
    "RoundRobin",
    "RandomChoice",
    "WeightedRandom",
    "SmoothWeighted",
    "LeastInUse",
    "PeakEwma",
    "DynamicWeights",
    "ShardedCluster",
    "AsyncShardedCluster",
    "Scattered",
    "ScatterFailed",
    "Router",
    "RingRouter",
    "RendezvousRouter",
    "JumpRouter",
    "RangeRouter",
    "LookupRouter",
    "FunctionRouter",
    "concat",
    "merge_sorted",
    "total",
    "smallest",
    "largest",
    "top",
)
